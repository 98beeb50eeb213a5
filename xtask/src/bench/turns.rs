//! Programs that take turns, so that what the machine does meanwhile touches all of them.

use anyhow::Result;

/// Who runs in a turn, of `count`: each is first, and each comes after each other one, equally often.
pub fn order(turn: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|i| (turn + i) % count).collect();
    // Of two, the next turn is the other order already.
    if turn % 2 == 1 && count % 2 == 1 {
        order.reverse();
    }
    order
}

/// What each of `count` programs gave in each turn: `run` is told which one.
pub fn take<T>(turns: u16, count: usize, mut run: impl FnMut(usize) -> Result<T>) -> Result<Vec<Vec<T>>> {
    let mut found: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
    for turn in 0..usize::from(turns) {
        for program in order(turn, count) {
            found[program].push(run(program)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_always_first_or_always_after_the_same() {
        let mut all: Vec<Vec<usize>> = (0..6).map(|turn| order(turn, 3)).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6, "every order once");
        assert_eq!((order(0, 2), order(1, 2)), (vec![0, 1], vec![1, 0]));
    }
}
