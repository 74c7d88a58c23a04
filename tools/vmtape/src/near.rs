//! What a misspelt name may have been meant for.

use vmtape_machine::hosts;

/// How alike two names are that one may have been meant for the other, of 1.
const ALIKE: f64 = 0.85;

/// The name that is most like a word, if one is.
fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let word = word.to_lowercase();
    let alike = |name: &str| strsim::jaro_winkler(&word, &name.to_lowercase());
    let rated = names.map(|name| (alike(name), name)).filter(|(rate, _)| *rate >= ALIKE);
    // Of equals the first.
    rated.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, name)| name)
}

/// `; did you mean NAME?`, or nothing.
pub fn hint<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> String {
    nearest(word, names).map_or(String::new(), |name| format!("; did you mean `{name}`?"))
}

/// Of a host.
pub fn host(word: &str) -> String {
    hint(word, hosts::ALL.iter().map(|host| host.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_seen() {
        let releases = ["v5.9", "v5.10", "v6.1", "v6.12", "v6.13", "v7.2"];
        let release = |word| nearest(word, releases.into_iter());
        assert_eq!(release("v6.12.3"), Some("v6.12"));
        assert_eq!(release("6.12"), Some("v6.12"));
        assert_eq!(release("V5.10"), Some("v5.10"));
        assert_eq!(release("linux"), None);
        assert_eq!(host("intel-64"), "; did you mean `intel-46`?");
        assert_eq!(host("pdp-11"), "");
    }
}
