//! Which rule of a listener a request falls under, and what of it makes the client's key.

mod facts;
mod key;
mod pattern;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;

pub use facts::Facts;
pub use key::{Key, key_hash};
pub(crate) use pattern::same_path;
pub use pattern::{HostPattern, Pattern};

/// A name and, if it must be exactly this, a value. Without one it suffices that the name is there.
pub type Wanted = (Box<str>, Option<Box<str>>);

/// One rule of a listener. Everything that is given must match; an empty one matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The path, without the query.
    pub path: Option<Pattern>,
    /// The Host field.
    pub host: Option<HostPattern>,
    /// Header fields: names in any case, values exact. Of repeated fields the first counts.
    pub headers: Vec<Wanted>,
    /// Cookies: names and values exact. Of cookies of one name the first counts.
    pub cookies: Vec<Wanted>,
    /// Query parameters, decoded. Of parameters of one name the first counts.
    pub query: Vec<Wanted>,
}

impl Match {
    /// Whether `facts` fall under this rule.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let is = |found: Option<&[u8]>, value: &Option<Box<str>>| match (found, value) {
            (Some(found), Some(value)) => found == value.as_bytes(),
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        };
        self.path.as_ref().is_none_or(|p| p.matches(facts.path))
            && self.host.as_ref().is_none_or(|h| h.matches(facts.host))
            && self.headers.iter().all(|(n, v)| is(facts.field(n), v))
            && self.cookies.iter().all(|(n, v)| is(facts.cookie(n), v))
            && (self.query.iter()).all(|(n, v)| is(facts.query_value(n).as_deref(), v))
    }
}

/// The rules of a listener, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(pub Vec<Match>);

impl Routes {
    /// The index of the first rule that matches.
    pub fn first(&self, facts: &Facts<'_>) -> Option<usize> {
        self.0.iter().position(|rule| rule.matches(facts))
    }
}
