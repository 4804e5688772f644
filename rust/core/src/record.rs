//! The record of a connection: one line at its end, for machines or for people.
//!
//! Written without floating point and without allocation beyond the caller's buffer: at 10,000
//! connections a second this is not what they cost. Names come from the configuration, addresses
//! from the kernel; both are escaped all the same, so that no line can be made to look like two.

use alloc::vec::Vec;
use core::fmt::Write;
use core::net::SocketAddr;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Both sides ended their directions.
    Finished,
    /// The client broke it off.
    ClientReset,
    /// The backend broke it off.
    BackendReset,
    /// Quiet for `idle_timeout`.
    IdleTimeout,
    /// Quiet for `half_closed_timeout` after one side had ended.
    HalfClosedTimeout,
    /// No backend could be reached.
    ConnectFailed,
    /// No backend was up.
    NoBackend,
    /// No outgoing port was left.
    PortsExhausted,
    /// `max_connections` reached.
    ListenerFull,
    /// `max_connections_per_source` reached.
    SourceFull,
    /// `accept_rate` reached, and no place in the queue, or too long a wait there.
    RateLimited,
    /// Its PROXY header is none.
    ProxyInvalid,
    /// It sent a PROXY header without being trusted.
    ProxyUntrusted,
    /// It sent a PROXY header where none is expected.
    ProxyUnexpected,
    /// A front proxy's own connection (PROXY LOCAL): its health check.
    ProxyLocal,
    /// Its PROXY header took too long.
    ProxyTimeout,
    /// The client left before a tunnel stood.
    ClientGone,
    /// Its backend left the pool.
    BackendRemoved,
    /// Its backend went down.
    BackendDown,
    /// The balancer ended.
    Shutdown,
    /// Its worker failed.
    WorkerPanic,
    /// Descriptors or memory had run out.
    OutOfResources,
    /// Its request was none, or not one that may be passed on.
    BadRequest,
    /// No route matched its request.
    NotRouted,
    /// Its Origin is not among those that may open WebSockets here.
    OriginRefused,
    /// Its request did not come in time.
    RequestTimeout,
    /// `handshakes` reached, and no place in the queue, or too long a wait there.
    HandshakeLimited,
    /// The backend's answer was none.
    BadAnswer,
    /// The backend did not answer in time.
    LateAnswer,
    /// A message larger than `max_message`, or a frame without sense.
    MessageTooBig,
    /// The client did not answer a ping.
    PingTimeout,
    /// Its backend went away, and no other took it in its place.
    ReattachFailed,
    /// Told to go by a drain.
    Drained,
    /// Still there at the deadline of a drain.
    DrainDeadline,
    /// Told to go to where there is more room.
    Shed,
    /// Its listener drains, and takes no new tunnels.
    Draining,
}

impl Reason {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Finished => "finished",
            Reason::ClientReset => "client-reset",
            Reason::BackendReset => "backend-reset",
            Reason::IdleTimeout => "idle-timeout",
            Reason::HalfClosedTimeout => "half-closed-timeout",
            Reason::ConnectFailed => "connect-failed",
            Reason::NoBackend => "no-backend",
            Reason::PortsExhausted => "ports-exhausted",
            Reason::ListenerFull => "listener-full",
            Reason::SourceFull => "source-full",
            Reason::RateLimited => "rate-limited",
            Reason::ProxyInvalid => "proxy-invalid",
            Reason::ProxyUntrusted => "proxy-untrusted",
            Reason::ProxyUnexpected => "proxy-unexpected",
            Reason::ProxyLocal => "proxy-local",
            Reason::ProxyTimeout => "proxy-timeout",
            Reason::ClientGone => "client-gone",
            Reason::BackendRemoved => "backend-removed",
            Reason::BackendDown => "backend-down",
            Reason::Shutdown => "shutdown",
            Reason::WorkerPanic => "worker-panic",
            Reason::OutOfResources => "out-of-resources",
            Reason::BadRequest => "bad-request",
            Reason::NotRouted => "not-routed",
            Reason::OriginRefused => "origin-refused",
            Reason::RequestTimeout => "request-timeout",
            Reason::HandshakeLimited => "handshake-limited",
            Reason::BadAnswer => "bad-answer",
            Reason::LateAnswer => "late-answer",
            Reason::MessageTooBig => "message-too-big",
            Reason::PingTimeout => "ping-timeout",
            Reason::ReattachFailed => "reattach-failed",
            Reason::Drained => "drained",
            Reason::DrainDeadline => "drain-deadline",
            Reason::Shed => "shed",
            Reason::Draining => "draining",
        }
    }
}

/// One connection that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When it ended, in nanoseconds of Unix time.
    pub unix_ns: u64,
    /// Where it came in.
    pub listener: &'a str,
    /// Who it was; None on a Unix socket.
    pub client: Option<SocketAddr>,
    /// The proxy that announced the client.
    pub proxied_by: Option<SocketAddr>,
    /// The pool it was for.
    pub pool: &'a str,
    /// The backend that had it.
    pub backend: Option<&'a str>,
    /// That backend's address.
    pub address: Option<&'a str>,
    /// How long the connect to it took.
    pub connect_ns: Option<u64>,
    /// From accept to end.
    pub duration_ns: u64,
    /// Bytes that the backend took.
    pub to_backend: u64,
    /// Bytes that the client took.
    pub to_client: u64,
    /// Backends asked.
    pub tries: u8,
    /// Why it ended.
    pub reason: Reason,
    /// What it asked for, where requests are read.
    pub request: Option<Asked<'a>>,
}

/// A request or a WebSocket handshake.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// GET and the like.
    pub method: &'a str,
    /// The Host field.
    pub host: &'a str,
    /// As the client sent it.
    pub target: &'a str,
    /// The route that matched.
    pub route: &'a str,
    /// Its id, as the backend knows it too.
    pub id: &'a str,
    /// Of the response; 0 if there was none.
    pub status: u16,
    /// WebSocket messages of the client and of the backend.
    pub messages: (u32, u32),
    /// The codes of their Close frames.
    pub close: (Option<u16>, Option<u16>),
    /// How often it went on at another backend.
    pub moved: u32,
}

/// Bytes as the target of `write!`.
struct Text<'a>(&'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Record<'_> {
    /// A JSON object (RFC 8259) and a line feed. Times are UTC (RFC 3339), spans seconds.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut text = Text(out);
        // Writing into a vector does not fail.
        let _ = text.json(self);
    }

    /// A line for people.
    pub fn write_human(&self, out: &mut Vec<u8>) {
        let mut text = Text(out);
        let _ = text.human(self);
    }
}

impl Text<'_> {
    fn json(&mut self, record: &Record<'_>) -> core::fmt::Result {
        self.write_str("{\"time\":\"")?;
        self.time(record.unix_ns)?;
        self.write_str("\",\"event\":\"connection\",\"listener\":")?;
        self.quoted(record.listener)?;
        match record.client {
            Some(client) => write!(self, ",\"client\":\"{client}\"")?,
            None => self.write_str(",\"client\":\"unix\"")?,
        }
        if let Some(proxy) = record.proxied_by {
            write!(self, ",\"proxied_by\":\"{proxy}\"")?;
        }
        self.write_str(",\"pool\":")?;
        self.quoted(record.pool)?;
        if let Some(backend) = record.backend {
            self.write_str(",\"backend\":")?;
            self.quoted(backend)?;
        }
        if let Some(address) = record.address {
            self.write_str(",\"address\":")?;
            self.quoted(address)?;
        }
        if let Some(connect) = record.connect_ns {
            self.write_str(",\"connect\":")?;
            self.seconds(connect)?;
        }
        self.write_str(",\"duration\":")?;
        self.seconds(record.duration_ns)?;
        if let Some(asked) = &record.request {
            self.json_request(asked)?;
        }
        writeln!(
            self,
            ",\"bytes_to_backend\":{},\"bytes_to_client\":{},\"tries\":{},\"reason\":\"{}\"}}",
            record.to_backend,
            record.to_client,
            record.tries,
            record.reason.as_str()
        )
    }

    fn json_request(&mut self, asked: &Asked<'_>) -> core::fmt::Result {
        for (key, value) in [
            (",\"method\":", asked.method),
            (",\"host\":", asked.host),
            (",\"target\":", asked.target),
            (",\"route\":", asked.route),
            (",\"request_id\":", asked.id),
        ] {
            self.write_str(key)?;
            self.quoted(value)?;
        }
        write!(self, ",\"status\":{}", asked.status)?;
        if asked.status == 101 {
            let (client, backend) = asked.messages;
            write!(self, ",\"messages_in\":{client},\"messages_out\":{backend}")?;
        }
        if asked.moved > 0 {
            write!(self, ",\"reattached\":{}", asked.moved)?;
        }
        for (key, code) in [("client", asked.close.0), ("backend", asked.close.1)] {
            if let Some(code) = code {
                write!(self, ",\"{key}_close\":{code}")?;
            }
        }
        Ok(())
    }

    fn human(&mut self, record: &Record<'_>) -> core::fmt::Result {
        self.time(record.unix_ns)?;
        self.write_str(" ")?;
        self.escaped(record.listener)?;
        match record.client {
            Some(client) => write!(self, " {client}")?,
            None => self.write_str(" unix")?,
        }
        if let Some(proxy) = record.proxied_by {
            write!(self, " (by {proxy})")?;
        }
        self.write_str(" -> ")?;
        self.escaped(record.pool)?;
        self.write_str("/")?;
        self.escaped(record.backend.unwrap_or("-"))?;
        self.write_str(" ")?;
        if let Some(asked) = &record.request {
            self.escaped(asked.method)?;
            self.write_str(" ")?;
            self.escaped(asked.host)?;
            self.escaped(asked.target)?;
            write!(self, " {} ", asked.status)?;
            if let Some(code) = asked.close.0.or(asked.close.1) {
                write!(self, "close={code} ")?;
            }
            if asked.moved > 0 {
                write!(self, "reattached={} ", asked.moved)?;
            }
        }
        self.seconds(record.duration_ns)?;
        writeln!(
            self,
            "s in={} out={} {}",
            record.to_backend,
            record.to_client,
            record.reason.as_str()
        )
    }

    /// Six decimals, as exact as anybody wants.
    fn seconds(&mut self, ns: u64) -> core::fmt::Result {
        write!(
            self,
            "{}.{:06}",
            ns / 1_000_000_000,
            ns % 1_000_000_000 / 1000
        )
    }

    /// RFC 3339 with milliseconds. Days to dates after Hinnant's "chrono-compatible low-level date
    /// algorithms": years begin in March, so that the leap day comes last.
    fn time(&mut self, unix_ns: u64) -> core::fmt::Result {
        let (seconds, ms) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000 / 1_000_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            self,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"
        )
    }

    fn quoted(&mut self, text: &str) -> core::fmt::Result {
        self.write_str("\"")?;
        for character in text.chars() {
            match character {
                '"' => self.write_str("\\\"")?,
                '\\' => self.write_str("\\\\")?,
                // Valid in JSON, but they end lines for some readers.
                '\u{2028}' | '\u{2029}' | '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
                    write!(self, "\\u{:04x}", u32::from(character))?;
                }
                other => self.write_char(other)?,
            }
        }
        self.write_str("\"")
    }

    fn escaped(&mut self, text: &str) -> core::fmt::Result {
        for character in text.chars() {
            match character {
                '\\' | ' ' | '\u{2028}' | '\u{2029}' => {
                    write!(self, "{}", character.escape_unicode())?
                }
                other if other.is_control() => write!(self, "{}", other.escape_unicode())?,
                other => self.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    const RECORD: Record<'_> = Record {
        unix_ns: 1_582_934_400_123_456_789,
        listener: "public",
        client: None,
        proxied_by: None,
        pool: "chat",
        backend: Some("app-1"),
        address: Some("127.0.0.1:9001"),
        connect_ns: Some(1_234_567),
        duration_ns: 61_000_000_000,
        to_backend: 5,
        to_client: 7,
        tries: 1,
        reason: Reason::Finished,
        request: None,
    };

    fn line(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_reads_back() {
        let hostile = Record {
            pool: "a\"\\\n\u{1b}[31m\u{2028}",
            ..RECORD
        };
        let text = line(|out| hostile.write_json(out));
        let breaks = |character: char| character.is_control() || character == '\u{2028}';
        assert_eq!(text.find(breaks), Some(text.len() - 1));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["pool"], hostile.pool);
        assert_eq!(value["time"], "2020-02-29T00:00:00.123Z");
        assert_eq!(value["connect"].as_f64(), Some(0.001234));
        assert_eq!(value["bytes_to_client"], 7);
        assert_eq!(value["client"], "unix");
    }

    #[test]
    fn human_lines_cannot_be_forged() {
        let client = Some("[2001:db8::1]:7".parse().unwrap());
        let hostile = Record {
            backend: Some("b\n2020 fake\r\u{1b}"),
            client,
            ..RECORD
        };
        let text = line(|out| hostile.write_human(out));
        assert_eq!(
            text,
            "2020-02-29T00:00:00.123Z public [2001:db8::1]:7 -> chat/b\\u{a}2020\\u{20}fake\\u{d}\\u{1b} \
             61.000000s in=5 out=7 finished\n"
        );
    }

    #[test]
    fn dates_are_right() {
        let date = |unix: u64| {
            let text = line(|out| {
                Record {
                    unix_ns: unix * 1_000_000_000,
                    ..RECORD
                }
                .write_human(out)
            });
            String::from(&text[..19])
        };
        assert_eq!(date(0), "1970-01-01T00:00:00");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59");
        assert_eq!(date(4_102_444_799), "2099-12-31T23:59:59");
    }
}
