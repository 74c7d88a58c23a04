//! The matrix as one page: no scripts, nothing from elsewhere, legible in light and in dark, on a phone and on paper.

mod hosts;
mod moves;

use super::{
    fleet::{Cell, Matrix, Outcome},
    pins::Pinned,
    text::GuestText,
};
use chrono::DateTime;
use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

const STYLE: &str = include_str!("page.css");
const TITLE: &str = "To which hosts may a guest move?";

/// What made a page, and when.
pub struct Made {
    /// Of the program, with its commit.
    pub version: &'static str,
    pub command: String,
    /// To the minute.
    pub date: String,
}

impl Made {
    /// Now, or when SOURCE_DATE_EPOCH says, by the command line of this process.
    // See: reproducible-builds.org, SOURCE_DATE_EPOCH
    pub fn here() -> Self {
        let told = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let date = DateTime::from_timestamp(told.unwrap_or_else(now), 0).unwrap_or_default();
        let words: Vec<String> = std::env::args().skip(1).collect();
        let words = words.iter().map(|word| shlex::try_quote(word).map_or(word.clone(), Into::into));
        let command = std::iter::once("vmtape".to_owned()).chain(words).collect::<Vec<_>>().join(" ");
        Self { version: env!("VMTAPE_BUILD"), command, date: date.format("%Y-%m-%d %H:%M UTC").to_string() }
    }
}

/// The page. `guest`: the one of a tape.
pub fn page(matrix: &Matrix, guest: Option<&GuestText>, pinned: Option<&Pinned>, made: &Made) -> String {
    let mut body = format!("<h1>{TITLE}</h1>\n");
    body += &summary(matrix, guest);
    body += &moves::matrix(matrix);
    body += &hosts::hosts(matrix);
    if let Some(pinned) = pinned {
        body += &hosts::pinned(pinned);
    }
    body += &moves::reasons(matrix);
    push(
        &mut body,
        format_args!(
            "<footer class=\"soft\">Made on {} by {}: <code>{}</code></footer>",
            escape(&made.date),
            escape(made.version),
            escape(&made.command)
        ),
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{TITLE}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// Appends a line. Writing to a string cannot fail.
fn push(text: &mut String, line: std::fmt::Arguments) {
    let _ = writeln!(text, "{line}");
}

/// Text from wherever as a page has it: no markup, and no control characters.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' | '\t' => escaped.push(character),
            _ if character.is_control() => escaped += &format!("\\x{:02x}", u32::from(character)),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// The style of an outcome, and a sign for those who do not see its colour.
fn style(outcome: Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Safe => ("safe", "\u{2713}"),
        Outcome::Conditional => ("conditional", "~"),
        Outcome::Unsafe => ("unsafe", "!"),
        Outcome::Refused => ("refused", "\u{2715}"),
        Outcome::NotStarted => ("none", "\u{2013}"),
        Outcome::Unknown => ("none", "?"),
    }
}

/// An outcome as a word in its colour.
fn word(outcome: Outcome) -> String {
    let (class, sign) = style(outcome);
    format!("<span class=\"word {class}\">{sign} {}</span>", outcome.text())
}

/// Whether a cell has more to tell than that it is safe.
fn told(cell: &Cell) -> bool {
    cell.outcome != Outcome::Safe
        || cell.assessment.as_ref().is_some_and(|assessment| !assessment.findings.is_empty())
}

/// How many moves there are of each outcome, and which guests move.
fn summary(matrix: &Matrix, guest: Option<&GuestText>) -> String {
    let moves = || matrix.moves();
    let outcomes = [
        Outcome::Safe,
        Outcome::Conditional,
        Outcome::Unsafe,
        Outcome::Refused,
        Outcome::NotStarted,
        Outcome::Unknown,
    ];
    let counts =
        outcomes.into_iter().map(|outcome| (outcome, moves().filter(|c| c.outcome == outcome).count()));
    let words: Vec<_> = counts
        .filter(|(_, count)| *count > 0)
        .map(|(outcome, count)| format!("<li>{count} {}</li>", word(outcome)))
        .collect();
    let mut html = match moves().count() {
        0 => "<p>There is one host, so there is no move.</p>\n".to_owned(),
        all => format!("<p class=\"lead\">{all} {}:</p>\n", if all == 1 { "move" } else { "moves" }),
    };
    if !words.is_empty() {
        push(&mut html, format_args!("<ul class=\"counts\">{}</ul>", words.concat()));
    }
    let guests: Vec<_> = matrix.guests.iter().map(|name| format!("<code>{}</code>", escape(name))).collect();
    let models: Vec<_> = matrix.cpu.iter().map(|cpu| format!("<code>{}</code>", escape(cpu))).collect();
    let what = match guest {
        Some(guest) => format!(
            "the guest of {}, recorded by {}, {} exits. Address bits that it uses: paging entries {}, devices {}, \
             memory {}; that it was told: {}",
            escape(&guest.tape),
            escape(&guest.recorded),
            guest.exits,
            guest.entry_bits,
            guest.device_bits,
            guest.slot_bits,
            guest.phys_bits
        ),
        None if matrix.guests.len() == 1 => "one guest".to_owned(),
        None => "the worst of these guests decides".to_owned(),
    };
    push(
        &mut html,
        format_args!("<p>{} with <code>-cpu</code> {}: {what}.</p>", guests.join(", "), models.join(", ")),
    );
    html
}

#[cfg(test)]
mod tests {
    use super::{super::fleet::Row, *};
    use std::collections::BTreeSet;

    fn cell(from: &str, to: &str, outcome: Outcome) -> Cell {
        let reason = format!("<{from}> & \"{to}\"");
        Cell { from: from.into(), to: to.into(), outcome, reason, guest: "g".into(), assessment: None }
    }

    fn matrix(names: &[&str]) -> Matrix {
        let host = |name: &&str| Row {
            name: (*name).into(),
            backend: "b".into(),
            vendor: "intel".into(),
            phys_bits: 46,
            kvm_phys_bits: 46,
            mappable_bits: 46,
            iommu_bits: Some(39),
            guest_levels: 4,
            hides_width: false,
        };
        let outcome = |from: &str, to: &str| if from < to { Outcome::Unsafe } else { Outcome::Safe };
        let pairs = names.iter().flat_map(|from| names.iter().map(move |to| (*from, *to)));
        Matrix {
            guests: vec!["g".into()],
            cpu: vec!["max".into()],
            hosts: names.iter().map(host).collect(),
            cells: pairs.map(|(from, to)| cell(from, to, outcome(from, to))).collect(),
            of_tape: false,
        }
    }

    fn made() -> Made {
        Made { version: "vmtape 0", command: "vmtape check <x>".into(), date: "2026-01-01 00:00 UTC".into() }
    }

    #[test]
    fn the_page_says_what_made_it() {
        let page = page(&matrix(&["a"]), None, None, &made());
        assert!(
            page.contains("Made on 2026-01-01 00:00 UTC by vmtape 0: <code>vmtape check &lt;x&gt;</code>"),
            "{page}"
        );
    }

    /// The values of an attribute.
    fn values<'p>(page: &'p str, attribute: &str) -> Vec<&'p str> {
        page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn the_page_stands_alone() {
        let page = page(&matrix(&["a", "b"]), None, None, &made());
        for foreign in ["http:", "https:", "<script", "<link", "url(", "src=", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
    }

    #[test]
    fn every_move_is_in_the_picture_and_what_is_not_safe_is_told() {
        let page = page(&matrix(&["a", "b"]), None, None, &made());
        assert_eq!(page.matches("<td class=\"cell").count(), 4);
        assert_eq!(page.matches("class=\"inside\"").count(), 1, "one of four is not safe");
        assert!(page.contains("1 <span class=\"word unsafe\">! unsafe</span>"), "home is no move: {page}");
    }

    #[test]
    fn links_lead_somewhere_and_only_to_one_place() {
        // Names that differ in punctuation alone.
        let page = page(&matrix(&["a.b", "a-b", "a b", "A-B"]), None, None, &made());
        let ids = values(&page, " id=\"");
        let unique: BTreeSet<_> = ids.iter().collect();
        let links = values(&page, " href=\"#");
        assert_eq!((ids.len(), unique.len(), links.len()), (6, 6, 6), "{page}");
        assert!(links.iter().all(|link| unique.contains(link)), "{page}");
    }

    #[test]
    fn names_are_text_whatever_they_say() {
        let evil = "\"><script>alert('x')</script><b x=\"";
        let page = page(&matrix(&[evil, "b & c"]), None, None, &made());
        assert!(!page.contains("<script") && !page.contains("<b "), "{page}");
        assert_eq!(escape("a\u{1b}[2J\u{9b}\nb"), "a\\x1b[2J\\x9b\nb");
        assert!(page.contains("&quot;&gt;&lt;script&gt;") && page.contains("b &amp; c"), "{page}");
    }

    #[test]
    fn what_is_opened_is_closed() {
        let page = page(&matrix(&["a", "b", "c"]), None, None, &made());
        for tag in [
            "table", "thead", "tbody", "tr", "td", "th", "details", "summary", "div", "span", "svg", "a",
            "p", "ul",
        ] {
            let opened =
                page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
            assert!(opened > 0, "{tag} is not used");
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn one_host_is_told_as_such() {
        let page = page(&matrix(&["alone"]), None, None, &made());
        assert!(page.contains("there is no move"), "{page}");
    }
}
