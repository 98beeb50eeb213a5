"""Runs a command and prints one JSON: milliseconds from its start to its end, its peak memory in MB, and what it printed.

usage: timed.py COMMAND...
"""

import json
import os
import subprocess
import sys
import time

start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
output = process.stdout.read().decode()
_, status, used = os.wait4(process.pid, 0)
took = time.perf_counter() - start
if status != 0:
    sys.exit(f"{sys.argv[1]} failed with exit status {os.waitstatus_to_exitcode(status)}")
print(json.dumps({"ms": took * 1e3, "peak_mb": used.ru_maxrss * 1024 / 1e6, "output": output}))
