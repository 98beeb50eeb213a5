//! Threads that work on volumes side by side, each with the network over the same frozen weights and parameters.
//!
//! Volumes in parallel scale better than threads inside an operation, which wait for each other many times a volume. What
//! comes out depends neither on which thread took which volume nor on which was done first.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tch::{Device, TchError};

use crate::Error;
use crate::data::{Ahead, Study, in_order};
use crate::model::{Encoder, Network, Parameters};

/// Threads that prepare volumes, at most; decoding and resampling are soon faster than the network.
const PREPARING: usize = 8;

type Job = Box<dyn FnOnce(&Encoder) + Send>;

/// Threads with an encoder each.
pub struct Workers {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    ahead: Ahead,
}

impl Workers {
    /// Shares `threads` threads among at most `most` workers; a GPU has one worker.
    pub fn new(network: &Network, threads: usize, most: usize) -> Result<Self, Error> {
        let on_cpu = network.encoder.device() == Device::Cpu;
        let count = if on_cpu { threads.min(most).max(1) } else { 1 };
        let inside = (threads / count).max(1) as i32;
        let ahead = Ahead { threads: threads.clamp(1, PREPARING), bytes: 1 << 30 };
        let (queue, jobs) = channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        let threads = (0..count)
            .map(|_| {
                let (encoder, jobs) = (network.encoder.share(), Arc::clone(&jobs));
                let work = move || {
                    tch::set_num_threads(inside);
                    while let Some(job) = next(&jobs) {
                        job(&encoder);
                    }
                };
                std::thread::Builder::new().name("worker".into()).spawn(work).map_err(Error::io("a thread"))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { queue: Some(queue), threads, ahead })
    }

    /// Sets the most memory for volumes that are prepared ahead, in bytes; 1 GiB at first.
    #[must_use]
    pub fn with_prefetch(mut self, bytes: usize) -> Self {
        self.ahead.bytes = bytes;
        self
    }

    /// How far volumes are prepared ahead.
    pub fn ahead(&self) -> Ahead {
        self.ahead
    }

    /// Number of workers.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// `work` on each of `inputs` with `parameters`; results in the order of the inputs.
    pub fn map<I: Send + 'static, T: Send + 'static>(
        &self,
        parameters: &Parameters,
        inputs: Vec<I>,
        work: impl Fn(&Network, I) -> Result<T, TchError> + Clone + Send + 'static,
    ) -> Result<Vec<T>, TchError> {
        let stopped = || TchError::Torch("a worker thread stopped".into());
        let mut results: Vec<Option<T>> = inputs.iter().map(|_| None).collect();
        let (send, receive) = channel();
        for (index, input) in inputs.into_iter().enumerate() {
            let (send, work, parameters) = (send.clone(), work.clone(), parameters.share());
            let job: Job = Box::new(move |encoder| {
                let network = Network { encoder: encoder.share(), parameters };
                // libtorch's errors come as values; should one panic all the same, its reason must not be lost.
                let made = catch_unwind(AssertUnwindSafe(|| work(&network, input)));
                let made = made.unwrap_or_else(|panic| Err(TchError::Torch(reason(panic.as_ref()))));
                // The receiver is gone where another job has failed.
                let _ = send.send((index, made));
            });
            self.queue.as_ref().ok_or_else(stopped)?.send(job).map_err(|_| stopped())?;
        }
        drop(send);
        for (index, made) in receive {
            results[index] = Some(made?);
        }
        results.into_iter().collect::<Option<_>>().ok_or_else(stopped)
    }

    /// `work` on the slices that `load` gives for each of `indices`, in their order, `None` where it gives none; loading runs
    /// ahead. `done` is called as volumes are finished, with their number.
    pub fn over<T: Send + 'static>(
        &self,
        parameters: &Parameters,
        indices: &[usize],
        load: impl Fn(usize) -> Result<Option<Arc<Study>>, Error> + Sync,
        work: impl Fn(&Network, &Study) -> Result<T, TchError> + Clone + Send + 'static,
        done: impl Fn(usize),
    ) -> Result<Vec<Option<T>>, Error> {
        let (mut results, mut waiting) = (Vec::with_capacity(indices.len()), Vec::new());
        let bytes = |study: &Option<Arc<Study>>| study.as_ref().map_or(0, |study| study.bytes());
        in_order(indices, self.ahead, bytes, load, |_, slices| {
            results.push(None);
            match slices {
                Some(slices) => waiting.push((results.len() - 1, slices)),
                None => done(1),
            }
            if waiting.len() == self.count() || results.len() == indices.len() {
                let (places, volumes): (Vec<usize>, Vec<_>) =
                    std::mem::take(&mut waiting).into_iter().unzip();
                done(volumes.len());
                let work = work.clone();
                let made = self.map(parameters, volumes, move |network, slices| work(network, &slices))?;
                for (place, made) in places.into_iter().zip(made) {
                    results[place] = Some(made);
                }
            }
            Ok::<_, Error>(())
        })?;
        Ok(results)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // One that panicked has been told of by the call that waited for it.
            let _ = thread.join();
        }
    }
}

/// What a panic says.
fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a worker panicked").to_owned()
}

/// The next job, or `None` when there will be none.
fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

#[cfg(test)]
mod tests {
    use runtime::engine::Output;

    use super::*;
    use crate::fit::tests::{study, tiny_network};

    #[test]
    fn results_keep_their_order_and_equal_one_threads() {
        let network = tiny_network(1);
        let volumes: Vec<Study> = (1..8).map(|n| study(n, n as u64)).collect();
        let expected = predicted(&network, &network, &volumes, 1);
        assert_eq!(expected[2].views[0].slice_weights.len(), 3);
        assert!(predicted(&network, &network, &volumes, 3) == expected);
        let workers = Workers::new(&network, 3, 8).unwrap();
        assert_eq!(workers.count(), 3);
        // The third is skipped.
        let load = |i: usize| Ok((i != 2).then(|| Arc::new(volumes[i].clone())));
        let work = |network: &Network, v: &Study| network.predict(v, 3);
        let done = std::cell::Cell::new(0);
        let count = |n| done.set(done.get() + n);
        let found = workers.over(&network.parameters, &[4, 0, 2, 6, 1], load, work, count).unwrap();
        let expected = [4, 0, 2, 6, 1].map(|i| (i != 2).then(|| expected[i].clone()));
        assert!(found == expected && done.get() == 5);
    }

    /// Predictions by workers made from `network`, with the parameters of `other`.
    fn predicted(network: &Network, other: &Network, volumes: &[Study], threads: usize) -> Vec<Output> {
        let workers = Workers::new(network, threads, 8).unwrap();
        workers.map(&other.parameters, volumes.to_vec(), |network, v| network.predict(&v, 3)).unwrap()
    }

    #[test]
    fn new_values_reach_every_worker() {
        let (network, other) = (tiny_network(1), tiny_network(2));
        let volumes = vec![study(2, 1); 4];
        let found = predicted(&network, &other, &volumes, 2);
        assert!(found == predicted(&other, &other, &volumes, 1));
        assert!(found != predicted(&network, &network, &volumes, 1));
    }

    #[test]
    fn an_error_comes_back_and_the_workers_go_on() {
        let network = tiny_network(1);
        let workers = Workers::new(&network, 2, 2).unwrap();
        let fail = |_: &Network, n: usize| if n == 3 { Err(TchError::Torch("three".into())) } else { Ok(n) };
        let error = workers.map(&network.parameters, vec![1, 2, 3, 4], fail).unwrap_err();
        assert!(error.to_string().contains("three"));
        assert_eq!(workers.map(&network.parameters, vec![1, 2], fail).unwrap(), [1, 2]);

        // A panic is an error too, with its reason, and takes no worker with it.
        let panics = |_: &Network, n: usize| {
            assert!(n != 3, "CUDA out of memory, {n}");
            Ok(n)
        };
        let error = Error::from(workers.map(&network.parameters, vec![3, 3, 3, 1], panics).unwrap_err());
        let text = error.to_string();
        assert!(text.contains("CUDA out of memory, 3; lower train.chunk"), "{text}");
        assert_eq!(workers.map(&network.parameters, vec![1, 2], panics).unwrap(), [1, 2]);
    }
}
