//! Sending clients straight to their backend: which one, by what URL, and when to come again.
//!
//! A client is told of the backend that the balancer would relay it to: the same pool, policy and key, by
//! the same [`Pool::pick_by`]. The key is that of the request which it will make there.

mod answer;
mod handed;
mod ticket;
mod url;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::pool::{Draw, Load, Pool, State};

pub use answer::{Put, Retry, Sent, write_put, write_sent};
pub use handed::Handed;
pub use ticket::TicketKey;
pub use url::{Place, PublicUrl};

/// What a route does with requests, where it does not relay them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell which backend to connect to.
    Directory,
    /// Send there at once (307).
    Redirect,
}

/// Where the backends of a pool are reached, and on what terms.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// By the pool's index. One without is never named.
    pub urls: Vec<Option<PublicUrl>>,
    /// How long an answer is good for.
    pub expires_in: Duration,
    /// How many other backends are named.
    pub alternatives: u8,
    /// What clients do when a connection fails.
    pub retry: Retry,
    /// The way through the balancer.
    pub fallback: Option<PublicUrl>,
    /// Signs tickets, if there are any.
    pub tickets: Option<TicketKey>,
    /// Tickets are good for the address that asked only.
    pub bound: bool,
}

/// A route that sends clients elsewhere.
#[derive(Clone, Debug)]
pub struct Direct {
    /// How.
    pub action: Action,
    /// The path that they are sent to; without it the one that they ask for.
    pub path: Option<Box<str>>,
    /// Where to.
    pub nodes: Arc<Nodes>,
}

/// The indexes of the backends that a client is told of, the picked one first; none if none can be.
///
/// `named` is the backend that its cookie binds it to, which counts while it takes new clients.
pub fn choose(
    pool: &Pool,
    nodes: &Nodes,
    draw: Draw,
    load: impl Fn(usize) -> Load,
    named: Option<&str>,
    most: usize,
) -> Vec<u16> {
    let mut found = Vec::new();
    let mut passed = Vec::new();
    let reached = |index: u16| matches!(nodes.urls.get(usize::from(index)), Some(Some(_)));
    let bound = named.and_then(|name| pool.bound_to(name)).filter(|index| {
        let backend = pool.backends.get(usize::from(*index));
        // Relayed, a bound client keeps a backend that drains. Sent there, it would be a new one.
        backend.is_some_and(|backend| backend.state == State::Up && backend.weight > 0)
    });
    if let Some(index) = bound.filter(|index| reached(*index)) {
        found.push(index);
        passed.push(index);
    }
    while found.len() < most {
        let Some(index) = pool.pick_by(draw, &load, &passed) else {
            break;
        };
        if reached(index) {
            found.push(index);
        }
        passed.push(index);
    }
    found
}

/// How long a client that is put off is to wait: a random time, or until its turn where there are turns.
///
/// Turns are given at the pace that is allowed, so that those who were refused together do not come back
/// together: `told` is the time of the last turn that was given, which goes on by `interval`. Nobody is
/// told to wait for longer than `most`; beyond that, times are drawn.
pub fn turn(
    told: u64,
    now: u64,
    interval: Duration,
    most: Duration,
    random: u64,
) -> (u64, Duration) {
    let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX).max(1);
    let next = told.max(now).saturating_add(interval);
    let wait = next.saturating_sub(now);
    if wait <= most {
        (next, Duration::from_nanos(wait))
    } else {
        (told, Duration::from_nanos(1 + random % most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Secret;
    use crate::pool::{Backend, FULL_RAMP, Key, Policy};
    use crate::rate::Gcra;
    use crate::time::Tick;
    use std::format;

    fn pool(policy: Policy, states: &[State]) -> Pool {
        let backend = |(index, state): (usize, &State)| Backend {
            name: format!("b{index}").into(),
            endpoint: "127.0.0.1:1".parse().unwrap(),
            weight: 1,
            state: *state,
            ramp: FULL_RAMP,
        };
        let backends = states.iter().enumerate().map(backend).collect();
        let secret = Secret::from_bytes([7; 16]);
        Pool::new(
            "p".into(),
            policy,
            Key::SourceIp,
            None,
            backends,
            16381,
            &secret,
            None,
        )
        .unwrap()
    }

    fn nodes(count: usize) -> Nodes {
        let url = |index| PublicUrl::parse(&format!("wss://b{index}.example")).ok();
        Nodes {
            urls: (0..count).map(url).collect(),
            expires_in: Duration::from_secs(30),
            alternatives: 2,
            retry: Retry {
                min: Duration::ZERO,
                max: Duration::from_secs(30),
                base: Duration::from_millis(500),
                stable: Duration::from_secs(10),
                window: Duration::from_secs(5),
            },
            fallback: None,
            tickets: None,
            bound: true,
        }
    }

    fn draw(n: u64) -> Draw {
        Draw {
            hash: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            entropy: n,
        }
    }

    #[test]
    fn the_directory_picks_what_the_balancer_picks() {
        let states = [
            State::Up,
            State::Down,
            State::Up,
            State::Draining,
            State::Up,
        ];
        for policy in [
            Policy::Maglev,
            Policy::LeastConnections,
            Policy::RoundRobin,
            Policy::RandomTwo,
        ] {
            let (pool, nodes) = (pool(policy, &states), nodes(5));
            for n in 0..10_000 {
                let load = |index: usize| Load::from((n as u32).wrapping_mul(index as u32 + 3) % 7);
                let found = choose(&pool, &nodes, draw(n), load, None, 3);
                let mut tried = Vec::new();
                while let Some(index) = pool.pick_by(draw(n), load, &tried) {
                    tried.push(index);
                }
                assert_eq!(found, tried, "{policy:?} {n}");
                assert_eq!(found.len(), 3);
            }
        }
    }

    #[test]
    fn a_cookie_binds_to_what_takes_new_clients() {
        let states = [State::Up, State::Down, State::Draining, State::Up];
        let (pool, nodes) = (pool(Policy::Maglev, &states), nodes(4));
        let of = |name, most| choose(&pool, &nodes, draw(1), |_| Load::from(0), name, most);
        let free = of(None, 1);
        assert_eq!(of(Some("b0"), 1), [0]);
        assert_eq!(of(Some("b3"), 2), [3, 0]);
        for name in ["b1", "b2", "b9", ""] {
            assert_eq!(of(Some(name), 1), free, "{name}");
        }
    }

    #[test]
    fn who_has_no_url_is_not_named() {
        let pool = pool(Policy::Maglev, &[State::Up; 3]);
        let mut nodes = nodes(3);
        nodes.urls[1] = None;
        for n in 0..100 {
            let found = choose(&pool, &nodes, draw(n), |_| Load::from(0), Some("b1"), 9);
            assert_eq!(found.len(), 2);
            assert!(!found.contains(&1));
        }
        let nobody = with_none(&nodes);
        assert!(choose(&pool, &nobody, draw(1), |_| Load::from(0), None, 9).is_empty());
    }

    fn with_none(nodes: &Nodes) -> Nodes {
        Nodes {
            urls: Vec::new(),
            ..nodes.clone()
        }
    }

    #[test]
    fn a_storm_comes_back_at_the_rate_and_nobody_is_left_out() {
        // All are lost at once. Each comes again when it was told to, as long as it has to.
        let (rate, burst, clients) = (1000.0, 100, 5000);
        let gcra = Gcra::new(rate, burst).unwrap();
        let (mut arrival, mut told) = (0, 0);
        let start = 7_000_000_000_u64;
        let mut waiting: Vec<(u64, u32)> = (0..clients).map(|_| (start, 1)).collect();
        let mut admitted = Vec::new();
        let mut random = 1_u64;
        while let Some(place) = (0..waiting.len()).min_by_key(|place| waiting[*place].0) {
            let (now, tries) = waiting.swap_remove(place);
            match gcra.admit(arrival, Tick(now)) {
                Ok(next) => {
                    arrival = next;
                    admitted.push((now, tries));
                }
                Err(_) => {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let most = Duration::from_secs(30);
                    let (next, wait) = turn(told, now, gcra.interval(), most, random);
                    told = next;
                    waiting.push((now + u64::try_from(wait.as_nanos()).unwrap(), tries + 1));
                }
            }
        }
        let last = admitted.iter().map(|(now, _)| now - start).max().unwrap();
        assert!(last <= 5_100_000_000, "{last}");
        // With turns nobody asks a third time.
        assert!(admitted.iter().all(|(_, tries)| *tries <= 2));
        // In no tenth of a second more than the rate and the burst.
        for window in 0..60 {
            let from = start + window * 100_000_000;
            let within = |now: u64| (from..from + 100_000_000).contains(&now);
            let count = admitted.iter().filter(|(now, _)| within(*now)).count();
            assert!(count <= 100 + 100, "{window}: {count}");
        }
    }

    #[test]
    fn turns_follow_each_other_and_nobody_waits_for_ever() {
        let (interval, most) = (Duration::from_millis(10), Duration::from_secs(1));
        let (mut told, now) = (0, 5_000_000_000);
        for n in 1..=100_u32 {
            let (next, wait) = turn(told, now, interval, most, 0);
            assert_eq!(wait, interval * n);
            told = next;
        }
        for random in [0, 1, 999, u64::MAX] {
            let (next, wait) = turn(told, now, interval, most, random);
            assert_eq!(next, told);
            assert!(wait <= most && !wait.is_zero());
        }
        assert_eq!(turn(told, told, interval, most, 0).1, interval);
        assert_eq!(
            turn(u64::MAX, 0, Duration::MAX, Duration::ZERO, 7).1,
            Duration::from_nanos(1)
        );
    }
}
