//! What a seed makes of the world: who is there, how good the weather is, and what happens when.

use std::time::Duration;

use pybalancer_core::drain::Terms;
use pybalancer_core::pool::Policy;
use pybalancer_core::reattach::Rules;
use pybalancer_core::time::Tick;

use crate::random::Random;
use crate::wire::Weather;

/// Something that happens to a backend, or is asked of the balancer.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// These backends drain.
    Drain(Vec<u16>, Terms),
    /// Everything does.
    DrainAll(Terms),
    /// The newest order is called off, and whom it drained is taken back.
    Undrain,
    /// The surplus goes.
    Shed(f64, Terms),
    /// A backend goes in this way, and is not there for a while.
    Fall(usize, Fall),
    /// It is there again.
    Rise(usize),
    /// It takes tunnels again.
    Open(usize),
    /// Health has seen that it is down.
    Down(usize),
    /// What was shed has come back: loads are even.
    Even(f64),
}

/// How a backend goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fall {
    /// Its clients have been drained; whoever is left is cut off.
    Planned,
    /// It says Close with this code to each, and goes on listening to them.
    Farewell(u16),
    /// It resets all.
    Reset,
    /// It ends all streams, perhaps within a frame.
    End,
    /// It is gone, and its host with it: what is sent there is never answered.
    Silence,
}

/// Everything that is drawn in advance.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Nobody is rude, nothing breaks.
    pub calm: bool,
    /// How many there are.
    pub clients: usize,
    /// How many there are.
    pub backends: usize,
    /// By backend.
    pub weights: Vec<u32>,
    /// Workers of the balancer.
    pub workers: usize,
    /// How a backend is picked.
    pub policy: Policy,
    /// Of a hundred connections, those on a route that re-attaches.
    pub reattach: usize,
    /// How.
    pub rules: Rules,
    /// Between clients and balancer.
    pub before: Weather,
    /// Between balancer and backends.
    pub behind: Weather,
    /// Workers wake so many ms late, at most.
    pub lateness: usize,
    /// How long a peer may take to answer a Close.
    pub patience: Duration,
    /// For a connect.
    pub connect: Duration,
    /// For the answer to a handshake.
    pub response: Duration,
    /// A client says something every so many ms.
    pub talk: usize,
    /// Bytes of a long message.
    pub long: usize,
    /// Of a hundred clients, those who read slowly.
    pub slow: usize,
    /// Of a hundred clients, those who go without a word, or never answer a Close.
    pub rude: usize,
    /// Of a hundred answers to a repeated handshake, those that are bad in some way.
    pub odd: usize,
    /// Nobody begins to speak after this.
    pub until: Tick,
    /// When the world is looked at as a whole.
    pub end: Tick,
    /// What happens.
    pub script: Vec<(Tick, Line)>,
}

impl Scenario {
    /// That of a seed.
    pub fn new(random: &mut Random) -> Scenario {
        let calm = random.chance(40);
        let clients = 1 + random.below(60).min(random.below(60));
        let backends = 1 + random.below(8);
        let policies = [
            Policy::Maglev,
            Policy::LeastConnections,
            Policy::RoundRobin,
            Policy::RandomTwo,
        ];
        let weighted = random.chance(20);
        let weights = (0..backends).map(|_| {
            if weighted {
                random.between(1, 3) as u32
            } else {
                1
            }
        });
        let weights = weights.collect();
        let mut scenario = Scenario {
            calm,
            clients,
            backends,
            weights,
            workers: random.between(1, 3),
            policy: random.pick(&policies),
            reattach: random.pick(&[0, 50, 100, 100]),
            rules: Rules {
                tries: random.between(1, 5) as u32,
                timeout: random.ms(2000, 8000),
                buffer: random.pick(&[512, 8192, 65536]),
            },
            before: weather(random, calm),
            behind: weather(random, calm),
            lateness: random.pick(&[0, 5, 40]),
            patience: if calm {
                Duration::from_secs(5)
            } else {
                random.ms(500, 5000)
            },
            connect: random.ms(300, 1500),
            response: random.ms(300, 1500),
            talk: 60 + clients * random.between(10, 40),
            long: random.pick(&[200, 3000, 6000, 6000, 70_000]),
            slow: if calm {
                0
            } else {
                random.pick(&[0, 0, 10, 40])
            },
            rude: if calm {
                0
            } else {
                random.pick(&[0, 0, 10, 30])
            },
            odd: if calm { 0 } else { random.pick(&[0, 30, 70]) },
            until: Tick(0),
            end: Tick(0),
            script: Vec::new(),
        };
        if scenario.long > 10_000 {
            // Millions of small pieces would show nothing new.
            scenario.before.piece = scenario.before.piece.max(1448);
            scenario.behind.piece = scenario.behind.piece.max(1448);
        }
        if calm {
            scenario.rules.tries = scenario.rules.tries.max(3);
            scenario.rules.timeout = random.ms(6000, 9000);
            scenario.connect = random.ms(1000, 1500);
            scenario.response = random.ms(1000, 1500);
        }
        let end = if calm {
            scenario.plan(random)
        } else {
            scenario.trouble(random)
        };
        scenario.until = end;
        scenario.end = end + Duration::from_secs(14);
        scenario
    }

    /// Moves that are planned: drains, rolls, sheds.
    fn plan(&mut self, random: &mut Random) -> Tick {
        let mut at = Tick(0) + random.ms(600, 1500);
        match random.below(4) {
            0 => {
                // A roll.
                for backend in 0..self.backends.min(3) {
                    let terms = terms(random, true);
                    self.script
                        .push((at, Line::Drain(vec![backend as u16], terms)));
                    at = at + terms.deadline + Duration::from_millis(1800);
                    self.script.push((at, Line::Fall(backend, Fall::Planned)));
                    at = at + random.ms(100, 800);
                    self.script.push((at, Line::Rise(backend)));
                    at = at + random.ms(10, 200);
                    self.script.push((at, Line::Open(backend)));
                    at = at + random.ms(10, 300);
                }
            }
            1 => {
                let terms = terms(random, true);
                self.script.push((at, Line::DrainAll(terms)));
                if random.chance(50) {
                    self.script.push((at + random.ms(1, 1500), Line::Undrain));
                }
                at = at + terms.deadline;
            }
            2 => {
                // One is empty, since it was away; then it is given its part.
                let backend = random.below(self.backends);
                let terms = terms(random, true);
                self.script
                    .push((at, Line::Drain(vec![backend as u16], terms)));
                let undrain = random.chance(30);
                at = match undrain {
                    true => at + random.ms(1, 2000),
                    false => at + terms.deadline + Duration::from_millis(1800),
                };
                let line = if undrain {
                    Line::Undrain
                } else {
                    Line::Open(backend)
                };
                self.script.push((at, line));
                at = at + random.ms(100, 600);
                let skew = random.pick(&[1.0, 1.05, 1.2, 1.5]);
                let mut terms = terms;
                terms.over = random.ms(0, 2000);
                self.script.push((at, Line::Shed(skew, terms)));
                let cap = self.clients as f64 / terms.rate.max(1.0);
                at = at + Duration::from_secs_f64(if terms.rate > 0.0 { cap } else { 0.0 });
                at = at + terms.over + Duration::from_secs(5);
                if !undrain && self.policy == Policy::LeastConnections {
                    self.script.push((at, Line::Even(skew)));
                }
            }
            _ => {
                // Backends take their leave in their own words.
                for backend in 0..self.backends.min(2) {
                    let code = random.pick(&[1001, 1012]);
                    self.script
                        .push((at, Line::Fall(backend, Fall::Farewell(code))));
                    at = at + random.ms(300, 1500);
                    self.script.push((at, Line::Rise(backend)));
                    at = at + random.ms(1000, 4000);
                }
            }
        }
        at + random.ms(300, 1500)
    }

    /// Whatever may go wrong.
    fn trouble(&mut self, random: &mut Random) -> Tick {
        let mut at = Tick(0) + random.ms(300, 1500);
        for _ in 0..random.between(2, 7) {
            let backend = random.below(self.backends);
            let line = match random.below(8) {
                0 => Line::Drain(some(random, self.backends), terms(random, false)),
                1 => Line::DrainAll(terms(random, false)),
                2 => Line::Undrain,
                3 => Line::Shed(random.pick(&[1.0, 1.1, 1.5]), terms(random, false)),
                _ => {
                    let falls = [
                        Fall::Farewell(1001),
                        Fall::Farewell(1012),
                        Fall::Farewell(1011),
                        Fall::Reset,
                        Fall::End,
                        Fall::Silence,
                    ];
                    let back = at + random.ms(50, 4000);
                    if random.chance(60) {
                        self.script
                            .push((at + random.ms(1, 800), Line::Down(backend)));
                    }
                    self.script.push((back, Line::Rise(backend)));
                    self.script
                        .push((back + random.ms(1, 300), Line::Open(backend)));
                    Line::Fall(backend, random.pick(&falls))
                }
            };
            self.script.push((at, line));
            at = at + random.ms(10, 2500);
        }
        self.script.sort_by_key(|(at, _)| *at);
        at + random.ms(300, 1500)
    }
}

fn some(random: &mut Random, of: usize) -> Vec<u16> {
    let chosen: Vec<u16> = (0..of as u16).filter(|_| random.chance(40)).collect();
    if chosen.is_empty() {
        vec![random.below(of) as u16]
    } else {
        chosen
    }
}

fn terms(random: &mut Random, roomy: bool) -> Terms {
    let over = random.ms(0, 3000);
    let rate = random.pick(&[0.0, 0.0, 20.0, 7.5, 100.0]);
    let deadline = match roomy {
        // At 7.5 a second 60 take 8 s.
        true if rate > 0.0 => over + Duration::from_secs_f64(60.0 / rate) + random.ms(4000, 5000),
        true => over + random.ms(4000, 5000),
        false => random.ms(0, 6000),
    };
    Terms {
        over,
        deadline,
        code: random.pick(&[1012, 1012, 1001, 1013, 4000]),
        rate,
    }
}

fn weather(random: &mut Random, calm: bool) -> Weather {
    let least = random.below(3);
    Weather {
        delay: (least, least + random.between(1, if calm { 20 } else { 60 })),
        window: random
            .pick(&[2048, 8192, 65536, 65536])
            .max(if calm { 16384 } else { 0 }),
        piece: random.pick(&[3, 700, 1448, 1448, 16384]),
    }
}
