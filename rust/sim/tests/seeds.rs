//! A thousand worlds, or as many as PYBALANCER_SIM_SEEDS says; with PYBALANCER_SIM_SEED that one alone, and with
//! PYBALANCER_SIM_TRACE the story of one of its connections.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pybalancer_sim::{Seen, run};

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
    )
}

#[test]
fn promises_are_kept() {
    if let Some(seed) = number("PYBALANCER_SIM_SEED") {
        let traced = number("PYBALANCER_SIM_TRACE").map(|connection| connection as u32);
        println!("{:?}", run(seed, traced));
        return;
    }
    let count = number("PYBALANCER_SIM_SEEDS").unwrap_or(1000);
    let mut failed = Vec::new();
    let mut all = Seen::default();
    for seed in 0..count {
        match catch_unwind(AssertUnwindSafe(|| run(seed, None))) {
            Ok(seen) => all.add(seen),
            Err(_) => {
                eprintln!(
                    "replay: PYBALANCER_SIM_SEED={seed} cargo test --profile ci -p pybalancer-sim -- --nocapture"
                );
                failed.push(seed);
            }
        }
        if failed.len() == 5 {
            break;
        }
    }
    assert!(
        failed.is_empty(),
        "promises were broken in the worlds of {failed:?}"
    );
    println!("{all:?}");
    if count >= 1000 {
        assert!(all.is_lively(), "too little happened: {all:?}");
    }
}

#[test]
fn a_seed_makes_the_same_world_again() {
    for seed in [3, 71, 500] {
        assert_eq!(run(seed, None), run(seed, None));
    }
}
