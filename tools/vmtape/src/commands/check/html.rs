//! The matrix as one page: no scripts, nothing from elsewhere, legible in light and in dark.

use super::{
    fleet::{Cell, Matrix, Outcome, Row},
    pins::Pinned,
    text::{STORY, pin_lines},
};
use std::fmt::Write;
use vmtape_replay::check::finding::Severity;

const STYLE: &str = include_str!("page.css");
/// Sides of a cell of the picture, and room for names.
const CELL: usize = 44;
const NAMES: usize = 190;
const GAP: usize = 3;

/// The page.
pub fn page(matrix: &Matrix, pinned: Option<&Pinned>) -> String {
    let mut body = String::new();
    let (safe, moves) = matrix.safe();
    let guests = escape(&matrix.guests.join(", "));
    let cpu = escape(&matrix.cpu.join(", "));
    push(&mut body, format_args!("<h1>To which hosts may a guest move?</h1>"));
    push(
        &mut body,
        format_args!(
            "<p>{safe} of {moves} moves are safe for {guests} with <code>{cpu}</code>. Every cell is a guest that was \
             recorded on the row's host and run again on the column's, beside the first; with what its tape shows of \
             addresses and features.</p>"
        ),
    );
    body += &picture(matrix);
    body += &legend();
    body += &hosts(matrix);
    if let Some(pinned) = pinned {
        let text = escape(&pinned.to_string());
        push(&mut body, format_args!("<h2>What to pin</h2>\n<pre>{}</pre>", text.trim()));
    }
    let told: Vec<_> = matrix.cells.iter().filter(|cell| told(cell)).collect();
    if !told.is_empty() {
        push(&mut body, format_args!("<h2>Why</h2>"));
        told.into_iter().for_each(|cell| body += &details(cell));
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>To which hosts may a guest move?</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// Appends a line. Writing to a string cannot fail.
fn push(text: &mut String, line: std::fmt::Arguments) {
    let _ = writeln!(text, "{line}");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The style of an outcome, and a sign for those who do not see its colour.
fn style(outcome: Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Safe => ("safe", "\u{2713}"),
        Outcome::Unsafe => ("unsafe", "!"),
        Outcome::Refused => ("refused", "\u{2715}"),
        Outcome::NotStarted => ("none", "\u{2013}"),
        Outcome::Unknown => ("none", "?"),
    }
}

/// Whether a cell has more to tell than that it is safe.
fn told(cell: &Cell) -> bool {
    cell.outcome != Outcome::Safe
        || cell.assessment.as_ref().is_some_and(|assessment| !assessment.findings.is_empty())
}

/// A cell's place on the page.
fn anchor(cell: &Cell) -> String {
    let word = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    format!("{}--{}", word(&cell.from), word(&cell.to))
}

/// Rows are where guests start, columns where they go.
fn picture(matrix: &Matrix) -> String {
    let mut rows: Vec<&str> = Vec::new();
    for cell in &matrix.cells {
        if !rows.contains(&cell.from.as_str()) {
            rows.push(&cell.from);
        }
    }
    let columns: Vec<_> = matrix.hosts.iter().map(|host| host.name.as_str()).collect();
    let columns: Vec<_> =
        columns.into_iter().filter(|to| matrix.cells.iter().any(|cell| cell.to == *to)).collect();
    // Column names lean to the right: the last one needs room.
    let (width, height) = (NAMES + CELL * columns.len() + NAMES / 2, NAMES / 2 + 40 + CELL * rows.len());
    let top = NAMES / 2 + 30;
    let mut svg = format!(
        "<div class=\"scroll\"><svg role=\"img\" aria-label=\"Verdicts by source and destination\" width=\"{width}\" \
         height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
    );
    push(
        &mut svg,
        format_args!("<text class=\"soft\" x=\"0\" y=\"{}\">from \u{2193} to \u{2192}</text>", top - 10),
    );
    for (n, name) in columns.iter().enumerate() {
        let x = NAMES + n * CELL + CELL / 2;
        push(
            &mut svg,
            format_args!(
                "<text x=\"{x}\" y=\"{0}\" transform=\"rotate(-45 {x} {0})\">{1}</text>",
                top - 8,
                escape(&shortened(name))
            ),
        );
    }
    for (n, from) in rows.iter().enumerate() {
        let y = top + n * CELL;
        push(
            &mut svg,
            format_args!("<text x=\"0\" y=\"{}\">{}</text>", y + CELL / 2 + 4, escape(&shortened(from))),
        );
        for (m, to) in columns.iter().enumerate() {
            if let Some(cell) = matrix.cell(from, to) {
                svg += &square(cell, NAMES + m * CELL, y);
            }
        }
    }
    svg + "</svg></div>\n"
}

/// Names as long as there is room for.
fn shortened(name: &str) -> String {
    const MOST: usize = 24;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST - 1).chain(['\u{2026}']).collect()
}

fn square(cell: &Cell, x: usize, y: usize) -> String {
    let (class, sign) = style(cell.outcome);
    let caution = cell.outcome == Outcome::Safe && told(cell);
    let sign = if caution { format!("{sign}*") } else { sign.to_owned() };
    let side = CELL - GAP;
    let title = format!("{} to {}: {}: {}", cell.from, cell.to, cell.outcome.text(), cell.reason);
    let picture = format!(
        "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" rx=\"5\"/><text class=\"mark\" \
         text-anchor=\"middle\" x=\"{}\" y=\"{}\">{sign}</text><title>{}</title>",
        x + side / 2,
        y + side / 2 + 6,
        escape(&title)
    );
    if told(cell) {
        format!("<a href=\"#{}\">{picture}</a>\n", anchor(cell))
    } else {
        format!("<g>{picture}</g>\n")
    }
}

fn legend() -> String {
    let outcomes = [Outcome::Safe, Outcome::Unsafe, Outcome::Refused, Outcome::NotStarted, Outcome::Unknown];
    let words: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| {
            let (class, sign) = style(outcome);
            format!("<span class=\"word {class}\">{sign} {}</span>", outcome.text())
        })
        .collect();
    let more = "a star: safe, with something to know; every coloured field leads to its reasons";
    format!("<p>{} <span class=\"soft\">({more})</span></p>\n", words.join(" \u{b7} "))
}

/// The widths of every host, which are so often taken for one another.
fn hosts(matrix: &Matrix) -> String {
    let mut html = String::from("<h2>Hosts</h2>\n<div class=\"scroll\"><table>\n<tr>");
    for head in [
        "host",
        "vendor",
        "backend",
        "address bits",
        "KVM tells guests",
        "maps",
        "IOMMU",
        "paging levels",
        "hides its width",
        "",
    ] {
        push(&mut html, format_args!("<th>{head}</th>"));
    }
    html += "</tr>\n";
    for host in &matrix.hosts {
        let iommu = host.iommu_bits.map_or("\u{2013}".to_owned(), |bits| bits.to_string());
        let hides = if host.hides_width { "yes" } else { "no" };
        push(
            &mut html,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{iommu}</td><td>{}</td>\
                 <td>{hides}</td><td>{}</td></tr>",
                escape(&host.name),
                escape(&host.vendor),
                escape(&host.backend),
                host.phys_bits,
                host.kvm_phys_bits,
                host.mappable_bits,
                host.guest_levels,
                widths(host)
            ),
        );
    }
    html += "</table></div>\n";
    html + "<p class=\"soft\">The bar is the processor's width between 32 and 52 bits, inside it what a guest's addresses can \
            be mapped to; the line is what devices reach.</p>\n"
}

/// A host's widths between 32 and 52 bits: what its CPU has, and inside it what guests can be mapped.
fn widths(host: &Row) -> String {
    const FROM: usize = 32;
    const SCALE: usize = 8;
    let x = |bits: u8| usize::from(bits).saturating_sub(FROM) * SCALE;
    let mut svg = format!(
        "<svg width=\"170\" height=\"18\" role=\"img\" aria-label=\"{} bits, {} mapped\">",
        host.phys_bits, host.mappable_bits
    );
    svg += &format!("<rect class=\"bar\" y=\"3\" width=\"{}\" height=\"12\" rx=\"3\"/>", x(host.phys_bits));
    let mapped = host.mappable_bits.min(host.kvm_phys_bits);
    svg += &format!("<rect class=\"safe\" y=\"6\" width=\"{}\" height=\"6\" rx=\"2\"/>", x(mapped));
    if let Some(bits) = host.iommu_bits {
        svg +=
            &format!("<rect class=\"refused\" x=\"{}\" y=\"0\" width=\"2\" height=\"18\"/>", x(bits.min(52)));
    }
    svg + "</svg>"
}

fn details(cell: &Cell) -> String {
    let (class, _) = style(cell.outcome);
    let mut html = format!(
        "<h3 id=\"{}\">{} \u{2192} {}: <span class=\"word {class}\">{}</span></h3>\n<p>{} <span class=\"soft\">({})</span></p>\n",
        anchor(cell),
        escape(&cell.from),
        escape(&cell.to),
        cell.outcome.text(),
        escape(&cell.reason),
        escape(&cell.guest)
    );
    let Some(assessment) = &cell.assessment else { return html };
    // The worst one is the reason above.
    let rest = assessment.findings.iter().filter(|finding| finding.to_string() != cell.reason);
    let rest: Vec<_> = rest
        .map(|finding| {
            let word = match finding.severity {
                Severity::Refuses => "refused",
                Severity::Breaks => "breaks",
                Severity::Caution => "caution",
            };
            format!(
                "<li>{word}: {} <span class=\"soft\">{}</span></li>\n",
                escape(&finding.to_string()),
                escape(finding.source)
            )
        })
        .collect();
    if !rest.is_empty() {
        push(&mut html, format_args!("<ul>\n{}</ul>", rest.concat()));
    }
    let pins: Vec<_> = pin_lines(assessment)
        .iter()
        .map(|line| format!("<li>to pin: <code>{}</code></li>\n", escape(line)))
        .collect();
    if !pins.is_empty() {
        push(&mut html, format_args!("<ul>\n{}</ul>", pins.concat()));
    }
    let divergence = assessment.replay.as_ref().and_then(|report| report.divergence.as_ref());
    if let Some(divergence) = divergence {
        let mut lines = String::new();
        for story in &divergence.stories {
            push(&mut lines, format_args!("{}: {}", story.side, story.outcome));
            story.lines.iter().take(STORY).for_each(|line| push(&mut lines, format_args!("  {line}")));
        }
        push(
            &mut html,
            format_args!(
                "<details><summary>The first difference, after {} instructions</summary><pre>{}</pre></details>",
                divergence.icount,
                escape(lines.trim_end())
            ),
        );
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(from: &str, to: &str, outcome: Outcome) -> Cell {
        let reason = format!("<{from}> & \"{to}\"");
        Cell { from: from.into(), to: to.into(), outcome, reason, guest: "g".into(), assessment: None }
    }

    fn matrix() -> Matrix {
        let host = |name: &str| Row {
            name: name.into(),
            backend: "b".into(),
            vendor: "intel".into(),
            phys_bits: 46,
            kvm_phys_bits: 46,
            mappable_bits: 46,
            iommu_bits: Some(39),
            guest_levels: 4,
            hides_width: false,
        };
        Matrix {
            guests: vec!["g".into()],
            cpu: vec!["max".into()],
            hosts: vec![host("a"), host("b")],
            cells: vec![cell("a", "b", Outcome::Unsafe), cell("b", "a", Outcome::Safe)],
        }
    }

    #[test]
    fn the_page_stands_alone() {
        let page = page(&matrix(), None);
        for foreign in ["http:", "https:", "<script", "<link", "url(", "src="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("<svg"));
    }

    #[test]
    fn every_move_is_in_the_picture_and_what_is_not_safe_is_told() {
        let page = page(&matrix(), None);
        assert_eq!(page.matches("class=\"mark\"").count(), 2);
        assert!(page.contains("href=\"#a--b\"") && page.contains("id=\"a--b\""), "{page}");
        assert!(!page.contains("id=\"b--a\""));
        assert!(page.contains("&lt;a&gt; &amp; &quot;b&quot;") && !page.contains("<a> &"), "{page}");
    }
}
