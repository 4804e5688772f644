//! Ending a WebSocket in its own language (RFC 6455 section 7): when which side gets its Close.
//!
//! A Close may only stand between two frames. So the frame under way is passed on to its end, then the
//! Close takes the place of the next one, and nothing of the other side's follows it. The client's
//! answer is passed on to the backend, which so learns of the end in the usual way. When both have had
//! their Close, what they still send means nothing any more.

use super::Tracker;

/// Going away: the server is shutting down.
pub const GOING_AWAY: u16 = 1001;
/// The peer broke the protocol.
const PROTOCOL_ERROR: u16 = 1002;
/// A message was too big to process.
const TOO_BIG: u16 = 1009;
/// A gateway got something from its server that it cannot use.
const BAD_GATEWAY: u16 = 1014;

/// Who sent what may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The client did.
    Client,
    /// The backend did.
    Backend,
}

/// Whether there is somebody behind the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partner {
    /// A backend, that knows nothing of the end.
    There,
    /// A backend, that has had a Close in the client's place.
    Told,
    /// None.
    Absent,
}

/// What is known of the stream towards one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// It takes nothing just now.
    pub blocked: bool,
    /// It has ended, or nothing may be put into it any more.
    pub ended: bool,
}

/// What is to be sent now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Say {
    /// A Close with this code to the client.
    pub to_client: Option<u16>,
    /// A Close with this code to the backend, masked.
    pub to_backend: Option<u16>,
    /// Nothing is owed to either side any more: the streams may be ended.
    pub over: bool,
}

/// A WebSocket on its way to an end that the balancer asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Farewell {
    /// The code for the client, until it has been sent.
    pub to_client: Option<u16>,
    /// The code for the backend, until it has been sent.
    pub to_backend: Option<u16>,
    /// Nothing of the client's passes any more; it is read and dropped.
    pub client_mute: bool,
    /// Nothing of the backend's passes any more.
    pub backend_mute: bool,
}

impl Farewell {
    /// Close with these codes. The backend usually has none: it gets the client's answer.
    pub fn new(to_client: Option<u16>, to_backend: Option<u16>, partner: Partner) -> Farewell {
        Farewell {
            to_client,
            to_backend: to_backend.filter(|_| partner == Partner::There),
            client_mute: partner != Partner::There,
            backend_mute: partner == Partner::Absent,
        }
    }

    /// Because of a frame that may not pass: too big where messages are `limited`, else of a length that is
    /// none.
    pub fn because_of(culprit: Culprit, limited: bool, partner: Partner) -> Farewell {
        let fault = if limited { TOO_BIG } else { PROTOCOL_ERROR };
        let (to_client, to_backend) = match culprit {
            Culprit::Client => (fault, GOING_AWAY),
            Culprit::Backend => (BAD_GATEWAY, fault),
        };
        let mut farewell = Farewell::new(Some(to_client), Some(to_backend), partner);
        // The stream behind that frame means nothing any more.
        match culprit {
            Culprit::Client => farewell.client_mute = true,
            Culprit::Backend => farewell.backend_mute = true,
        }
        farewell
    }

    /// The client will not answer any more: the backend is told in our own words.
    pub fn answer_in_its_place(&mut self) {
        self.to_backend = self.to_backend.or(Some(GOING_AWAY));
    }

    /// What can be said now, given where the frames of both sides stand and what the streams towards them
    /// take. What it says is to be sent: it is not said again.
    pub fn advance(
        &mut self,
        from_client: &Tracker,
        from_backend: &Tracker,
        client: Stream,
        backend: Stream,
    ) -> Say {
        let mut say = Say::default();
        if let Some(code) = self.to_client
            && from_backend.at_boundary()
            && !client.blocked
        {
            // One of the backend's own has passed, or there is nobody to hear it: then it goes unsaid.
            let unheard = from_backend.closed().is_some() || client.ended;
            say.to_client = (!unheard).then_some(code);
            self.to_client = None;
            self.backend_mute = true;
        }
        if from_client.closed().is_some() && self.to_client.is_none() {
            // The client's answer has gone to the backend, and is all that it needed.
            self.to_backend = None;
            self.client_mute = true;
        }
        if let Some(code) = self.to_backend
            && from_client.at_boundary()
            && !backend.blocked
        {
            let unheard = from_client.closed().is_some() || backend.ended;
            say.to_backend = (!unheard).then_some(code);
            self.to_backend = None;
            self.client_mute = true;
        }
        let said = self.to_client.is_none() && self.to_backend.is_none();
        say.over = said && self.client_mute && self.backend_mute;
        say
    }

    /// There is no backend any more: the client is alone.
    pub fn lose_backend(&mut self) {
        self.to_backend = None;
        (self.client_mute, self.backend_mute) = (true, true);
    }

    /// Whether the client has been told, or need not be.
    pub fn client_told(&self) -> bool {
        self.to_client.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Rules, close_frame};
    use super::*;

    const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);
    const FREE: Stream = Stream {
        blocked: false,
        ended: false,
    };

    fn after(bytes: &[u8]) -> Tracker {
        let mut tracker = Tracker::default();
        tracker.see(bytes, &Rules::default()).unwrap();
        tracker
    }

    fn farewell(code: u16) -> Farewell {
        Farewell {
            to_client: Some(code),
            ..Farewell::default()
        }
    }

    #[test]
    fn it_waits_for_the_end_of_the_frame_and_for_room() {
        let mut farewell = farewell(1012);
        let within = after(&[0x82, 5, 0, 0]);
        let free = Tracker::default();
        assert_eq!(farewell.advance(&free, &within, FREE, FREE), Say::default());
        let blocked = Stream {
            blocked: true,
            ..FREE
        };
        assert_eq!(
            farewell.advance(&free, &free, blocked, FREE),
            Say::default()
        );
        let say = farewell.advance(&free, &free, FREE, FREE);
        assert_eq!(say.to_client, Some(1012));
        assert!(farewell.backend_mute && !farewell.client_mute && !say.over);
        // Said once.
        assert_eq!(farewell.advance(&free, &free, FREE, FREE), Say::default());
        let answer = after(close_frame(1012, "", MASK).as_slice());
        assert!(farewell.advance(&answer, &free, FREE, FREE).over);
    }

    #[test]
    fn nobody_gets_a_second_close() {
        let mut farewell = farewell(1012);
        let closed = after(close_frame(1000, "", None).as_slice());
        let say = farewell.advance(&Tracker::default(), &closed, FREE, FREE);
        assert_eq!(say, Say::default());
        farewell.to_backend = Some(1001);
        let answered = after(close_frame(1000, "", MASK).as_slice());
        let say = farewell.advance(&answered, &closed, FREE, FREE);
        assert_eq!(
            (say.to_client, say.to_backend, say.over),
            (None, None, true)
        );
    }

    #[test]
    fn a_client_that_does_not_answer_is_answered_for() {
        let mut farewell = farewell(1012);
        let free = Tracker::default();
        farewell.advance(&free, &free, FREE, FREE);
        farewell.to_backend = Some(1001);
        let within = after(&[0x82, 0x85, 1, 2, 3, 4, 9]);
        assert_eq!(farewell.advance(&within, &free, FREE, FREE), Say::default());
        let say = farewell.advance(&free, &free, FREE, FREE);
        assert_eq!(
            (say.to_client, say.to_backend, say.over),
            (None, Some(1001), true)
        );
    }
}
