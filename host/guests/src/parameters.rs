//! What follows a guest's name: `NAME,key=value,...`, checked against what the guest declares.

use crate::error::GuestError;

/// What a parameter's value may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Decimal, or hexadecimal after `0x`.
    Number,
    /// 0 or 1.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// A parameter that a guest understands.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
    /// As it would be written; empty where the guest derives it from others.
    pub default: &'static str,
    pub summary: &'static str,
    /// Parameters that say the same in other words.
    pub excludes: &'static [&'static str],
}

impl Parameter {
    pub const fn new(name: &'static str, kind: Kind, default: &'static str, summary: &'static str) -> Self {
        Self { name, kind, default, summary, excludes: &[] }
    }

    pub const fn excludes(mut self, others: &'static [&'static str]) -> Self {
        self.excludes = others;
        self
    }

    /// What values look like, for lists.
    pub fn values(&self) -> String {
        match self.kind {
            Kind::Number => "N".to_owned(),
            Kind::Flag => "0|1".to_owned(),
            Kind::Choice(words) => words.join("|"),
        }
    }

    fn accepts(&self, text: &str) -> bool {
        match self.kind {
            Kind::Number => number(text).is_some(),
            Kind::Flag => matches!(text, "0" | "1"),
            Kind::Choice(words) => words.contains(&text),
        }
    }
}

/// A guest's parameters with their values, given or by default.
#[derive(Debug)]
pub struct Values {
    values: Vec<(&'static str, String)>,
}

impl Values {
    /// Reads `key=value,...`; nothing at all is everything by default.
    pub fn parse(
        guest: &'static str,
        parameters: &'static [Parameter],
        text: &str,
    ) -> Result<Self, GuestError> {
        let mut given: Vec<(&'static str, String)> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, "1"));
            let parameter = parameters
                .iter()
                .find(|parameter| parameter.name == key)
                .ok_or_else(|| GuestError::UnknownParameter { guest, key: key.to_owned() })?;
            if !parameter.accepts(value) {
                return Err(GuestError::BadValue {
                    guest,
                    key: parameter.name,
                    value: value.to_owned(),
                    expected: parameter.values(),
                });
            }
            let clash = given.iter().find(|(other, _)| {
                *other == key || parameter.excludes.contains(other) || excludes(parameters, other, key)
            });
            if let Some((other, _)) = clash {
                return Err(GuestError::Clash { guest, key: parameter.name, other });
            }
            given.push((parameter.name, value.to_owned()));
        }
        let defaults = parameters.iter().filter(|p| !p.default.is_empty());
        for parameter in defaults {
            if !given.iter().any(|(key, _)| *key == parameter.name) {
                given.push((parameter.name, parameter.default.to_owned()));
            }
        }
        Ok(Self { values: given })
    }

    /// The word, where one was given or is the default.
    pub fn word(&self, key: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        self.word(key).and_then(number)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.word(key) == Some("1")
    }
}

fn excludes(parameters: &[Parameter], parameter: &str, other: &str) -> bool {
    parameters.iter().any(|p| p.name == parameter && p.excludes.contains(&other))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
