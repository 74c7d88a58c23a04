//! The verdicts: a table with a cell for every move, and behind each cell its reasons.

use super::{escape, push, style, told, word};
use crate::commands::check::{
    fleet::{Cell, Matrix, Outcome},
    text::{STORY, pin_lines},
};
use vmtape_replay::{
    check::{Assessment, finding::Finding},
    report::Divergence,
};

/// From so many columns on, cells are small.
const MANY: usize = 16;

/// The names along an axis, in the order in which they come.
fn names<'m>(matrix: &'m Matrix, name: impl Fn(&'m Cell) -> &'m str) -> Vec<&'m str> {
    let mut names: Vec<&str> = Vec::new();
    for cell in &matrix.cells {
        if !names.contains(&name(cell)) {
            names.push(name(cell));
        }
    }
    names
}

/// A cell's place on the page.
fn anchor(matrix: &Matrix, cell: &Cell) -> String {
    let number = matrix.cells.iter().position(|other| std::ptr::eq(other, cell));
    format!("move-{}", number.unwrap_or_default())
}

/// Rows are where guests start, columns where they go.
pub fn matrix(matrix: &Matrix) -> String {
    let (rows, columns) = (names(matrix, |cell| &cell.from), names(matrix, |cell| &cell.to));
    let many = if columns.len() >= MANY { " many" } else { "" };
    let mut html = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"Verdicts\" tabindex=\"0\"><table class=\"matrix{many}\">\n\
         <thead><tr><td class=\"soft\">from \u{2193} to \u{2192}</td>"
    );
    for to in &columns {
        html += &format!("<th scope=\"col\"><span>{}</span></th>", escape(to));
    }
    html += "</tr></thead>\n<tbody>\n";
    for from in rows {
        html += &format!("<tr><th scope=\"row\">{}</th>", escape(from));
        for to in &columns {
            html += &matrix.cell(from, to).map_or("<td></td>".to_owned(), |cell| square(matrix, cell));
        }
        html += "</tr>\n";
    }
    html += "</tbody></table></div>\n";
    html + "<p class=\"soft\">Every cell is a guest that was recorded on the row's host and run again on the column's, beside \
            the first, held against what that host has. Signs lead to their reasons; \u{2713}*: safe, with something to \
            know.</p>\n"
}

fn square(matrix: &Matrix, cell: &Cell) -> String {
    let (class, sign) = style(cell.outcome);
    let star = if cell.outcome == Outcome::Safe && told(cell) { "*" } else { "" };
    let home = if cell.from == cell.to && !matrix.of_tape { " home" } else { "" };
    let title = escape(&format!("{} to {}: {}: {}", cell.from, cell.to, cell.outcome.text(), cell.reason));
    let inner = if told(cell) {
        format!("<a href=\"#{}\" title=\"{title}\">{sign}{star}</a>", anchor(matrix, cell))
    } else {
        format!("<span title=\"{title}\">{sign}</span>")
    };
    format!("<td class=\"cell {class}{home}\">{inner}</td>")
}

/// What there is to tell, source by source. With many of them, one opens those that one looks for.
pub fn reasons(matrix: &Matrix) -> String {
    const FEW: usize = 8;
    let mut html = String::new();
    let sources = names(matrix, |cell| &cell.from);
    let open = if sources.len() <= FEW { " open" } else { "" };
    for from in sources {
        let cells = matrix.cells.iter().filter(|cell| cell.from == from && told(cell));
        let cells: Vec<_> = cells.map(|cell| details(matrix, cell)).collect();
        if !cells.is_empty() {
            push(
                &mut html,
                format_args!(
                    "<details class=\"from\"{open}><summary><h3>From {}</h3></summary>\n{}</details>",
                    escape(from),
                    cells.concat()
                ),
            );
        }
    }
    if html.is_empty() { html } else { format!("<h2>Why</h2>\n{html}") }
}

fn details(matrix: &Matrix, cell: &Cell) -> String {
    // The anchor is inside: browsers open what they are led into.
    let told = cell.outcome != Outcome::Safe && cell.assessment.is_some();
    let mut html = format!(
        "<details{}><summary>{} \u{2192} <b>{}</b> <span class=\"why\">{}</span></summary>\n<div class=\"inside\" id=\"{}\">\n",
        // Opened, the first finding is the reason.
        if told { " class=\"full\"" } else { "" },
        word(cell.outcome),
        escape(&cell.to),
        escape(&cell.reason),
        anchor(matrix, cell)
    );
    match &cell.assessment {
        Some(assessment) => html += &assessed(cell, assessment),
        None => push(&mut html, format_args!("<p>The guest is <code>{}</code>.</p>", escape(&cell.guest))),
    }
    html + "</div></details>\n"
}

fn assessed(cell: &Cell, assessment: &Assessment) -> String {
    let mut html = format!(
        "<p><code>{}</code> on {}: {}.{}</p>\n",
        escape(&cell.guest),
        escape(&assessment.machine),
        cell.outcome.text(),
        assessment
            .exit
            .map_or(String::new(), |exit| format!(" The first exit that differs is number {exit}."))
    );
    if !assessment.findings.is_empty() {
        let findings: String = assessment.findings.iter().map(finding).collect();
        push(&mut html, format_args!("<ul>\n{findings}</ul>"));
    }
    let pins: String =
        pin_lines(assessment).iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    if !pins.is_empty() {
        push(&mut html, format_args!("<ul>\n{pins}</ul>"));
    }
    let divergence = assessment.replay.as_ref().and_then(|report| report.divergence.as_ref());
    html + &divergence.map_or(String::new(), first_difference)
}

fn finding(finding: &Finding) -> String {
    let word = finding.severity.text();
    format!(
        "<li><b>{word}</b>: {} <span class=\"soft\">({})</span></li>\n",
        escape(&finding.to_string()),
        escape(finding.source)
    )
}

fn first_difference(divergence: &Divergence) -> String {
    let mut lines = String::new();
    for story in &divergence.stories {
        push(&mut lines, format_args!("{}: {}", story.side, story.outcome));
        story.lines.iter().take(STORY).for_each(|line| push(&mut lines, format_args!("  {line}")));
        if story.lines.len() > STORY {
            push(&mut lines, format_args!("  and so on, {} lines in all", story.lines.len()));
        }
    }
    if !divergence.reproduce.is_empty() {
        push(&mut lines, format_args!("again: {}", divergence.reproduce));
    }
    format!(
        "<p>The first difference, after {} instructions, at rip {:#x}:</p>\n<pre>{}</pre>\n",
        divergence.icount,
        divergence.rip,
        escape(lines.trim_end())
    )
}
