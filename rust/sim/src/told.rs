//! Whom a drain or shed has told to go, and when: the pace is checked here.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use pybalancer_core::time::Tick;

const SECOND: Duration = Duration::from_secs(1);
/// What a late worker may make up for, as the pace says.
const LATENESS: Duration = Duration::from_millis(10);

/// A drain or shed, and whom it has told.
#[derive(Debug)]
pub struct Told {
    /// In any second, at most; None for no cap.
    most: Option<usize>,
    /// Of so many tunnels.
    count: usize,
    over: Duration,
    recent: VecDeque<Tick>,
    /// How many.
    pub all: usize,
    /// It was called off.
    pub cancelled: bool,
    gaps: BTreeSet<u64>,
}

impl Told {
    /// Nobody yet, of `count`, over this time, with this cap (0: none).
    pub fn new(count: usize, over: Duration, rate: f64) -> Told {
        Told {
            most: (rate > 0.0).then_some((rate.ceil() as usize).max(1)),
            count,
            over,
            recent: VecDeque::new(),
            all: 0,
            cancelled: false,
            gaps: BTreeSet::new(),
        }
    }

    /// One more is told.
    pub fn tell(&mut self, now: Tick) {
        assert!(!self.cancelled, "told to go though it was called off");
        self.all += 1;
        if let Some(last) = self.recent.back() {
            self.gaps.insert(now.0 - last.0);
        }
        self.recent.push_back(now);
        while self
            .recent
            .front()
            .is_some_and(|at| now.since(*at) >= SECOND)
        {
            self.recent.pop_front();
        }
        if let Some(most) = self.most {
            let within = self.recent.len();
            assert!(within <= most, "{within} told in a second, {most} at most");
        }
        // Intervals are not shorter than half the mean, less what a late worker makes up for.
        let shortest = self.over.as_nanos() as f64 / self.count.max(1) as f64 / 2.0;
        if shortest > 0.0 {
            let span = (SECOND + LATENESS).as_nanos() as f64;
            let most = (span / shortest) as usize + 1;
            assert!(
                self.recent.len() <= most,
                "{} in a second, spread over {:?}",
                self.recent.len(),
                self.over
            );
        }
    }

    /// It is over.
    pub fn close(&self) {
        // Without a cap there is jitter: intervals are not all the same.
        // (Where these are shorter than a worker's turn, its turns are the pace.)
        let fast = self.over < Duration::from_millis(2) * self.count as u32;
        let jitters = self.most.is_some() || self.all < 8 || fast || self.gaps.len() > 2;
        assert!(jitters, "{} told in step: {:?}", self.all, self.gaps);
    }
}
