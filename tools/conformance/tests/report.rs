//! `vmtape report`: what was run is on the page, and whoever opens it sees it, in light and dark, on a phone and on paper.

use anyhow::{Result, ensure};
use serde_json::Value;
use std::{fs, path::Path};
use vmtape_conformance::{
    browser::{self, Eye},
    skipped, tail, vmtape,
};

/// Runs a command, whose verdict is of no matter, and keeps what it printed.
fn keep(folder: &Path, file: &str, line: &[&str]) -> Result<()> {
    let output = vmtape(folder, line)?;
    ensure!(!output.stdout.is_empty(), "{line:?}: {}", tail(&output));
    Ok(fs::write(folder.join(file), output.stdout)?)
}

/// What a tape says must be text on the page, and no more.
const EVIL: &str = "<img src=x onerror=document.title=1>&\"'";

/// Tapes, comparisons, moves, a map, a campaign with its findings.
fn everything(folder: &Path) -> Result<()> {
    let ok = |line: &[&str]| -> Result<()> {
        let output = vmtape(folder, line)?;
        ensure!(output.status.code().is_some_and(|code| code < 2), "{line:?}: {}", tail(&output));
        Ok(())
    };
    fs::create_dir(folder.join("run"))?;
    let illegal = ["--cpu", "max,phys-bits=36", "builtin:illegal"];
    ok(&[&["record", "-q", "-b", "svm-npt", "-o", "run/a.tape", "--append", EVIL][..], &illegal].concat())?;
    ok(&[
        "record",
        "-q",
        "-b",
        "svm",
        "--fault",
        "spte-flip,n=3,value=5",
        "-o",
        "run/b.tape",
        "builtin:touch",
    ])?;
    ok(&["record", "-q", "-b", "vmx", "-m", "16M", "-o", "c.tape", "builtin:luggage"])?;
    keep(folder, "run/replay.json", &["replay", "run/a.tape", "-b", "vmx", "--json"])?;
    let to = ["--to", "vmx", "--json"];
    ok(&["record", "-q", "-b", "vmx", "-m", "64M", "-o", "d.tape", "builtin:dirty,pages=300,rounds=800"])?;
    let precopy = ["--method", "precopy", "--bandwidth", "300M", "--downtime", "10"];
    let move_ = [&["migrate", "d.tape", "--at", "insn=200000"][..], &precopy, &to].concat();
    keep(folder, "run/move.json", &move_)?;
    let map = ["migrate", "c.tape", "--at", "every-exit=25", "--fault", "move-state-lost,n=4"];
    keep(folder, "run/map.json", &[&map[..], &to].concat())?;
    let campaign = "seed = 3\nplans = 40\nguests = [\"builtin:touch\"]\n[[machine]]\nbackend = \"vmx\"\n\
                    [[machine]]\nbackend = \"svm\"\n";
    fs::write(folder.join("campaign.toml"), campaign)?;
    ok(&["campaign", "plan", "campaign.toml", "-o", "run/plan.toml"])?;
    ok(&["campaign", "run", "run/plan.toml", "--shard", "0", "-o", "run/results"])?;
    ok(&[
        "campaign",
        "report",
        "run/plan.toml",
        "run/results",
        "-o",
        "run/findings",
        "--most",
        "2",
        "--tries",
        "5",
    ])
}

fn draw(folder: &Path, of: &str) -> Result<()> {
    let drawn = vmtape(folder, &["report", of, "-o", "report.html"])?;
    ensure!(drawn.status.success(), "{}", tail(&drawn));
    Ok(())
}

/// What is to be seen: the sizes of what was drawn, the page's width, colours, words.
const LOOK: &str = "({
  title: page.title, scripts: page.scripts.length, images: page.images.length,
  wide: page.documentElement.scrollWidth, window: page.documentElement.clientWidth,
  ground: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
  text: page.body.innerText,
  heads: [...page.querySelectorAll(`h2`)].filter(e => e.getBoundingClientRect().height > 0).map(e => e.innerText),
  drawn: Object.fromEntries([`.exits .bars rect`, `.exits .fault .head`, `.walk rect`, `.walk .entry`, `.rounds rect.sent`,
    `.rounds rect.dirty`, `.heat rect`, `.heat text`, `.verdicts td .word`, `#findings pre`].map(what =>
    [what, [...page.querySelectorAll(what)].filter(e => { const r = e.getBoundingClientRect(); return r.width > 0.1 && r.height > 0.1 }).length])),
  outside: [...page.querySelectorAll(`svg.exits, svg.rounds, table, pre, .heat, .walk`)].filter(e => {
    const box = e.closest(`.scroll`) || e; return box.getBoundingClientRect().right > page.documentElement.clientWidth + 1 }).length,
  faint: [...page.querySelectorAll(`.word, p, li, h3, svg.heat text`)].filter(e => e.checkVisibility() && contrast(e) < 3).length,
})";

/// See: WCAG 2.2, contrast ratio and relative luminance
const CONTRAST: &str = "(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const view = page.defaultView;
  window.contrast = e => { const of = c => light(c); const svg = e.tagName == `text`;
    const ink = view.getComputedStyle(e)[svg ? `fill` : `color`];
    const ground = svg ? view.getComputedStyle(e.parentNode.querySelector(`rect`)).fill : view.getComputedStyle(page.body).backgroundColor;
    const [a, b] = [of(ink), of(ground)].sort((a, b) => b - a); return (a + 0.05) / (b + 0.05) };
  return LOOK })()";

fn seen(page: &Path, eye: Eye) -> Result<Value> {
    browser::look(page, eye, &CONTRAST.replace("LOOK", LOOK))
}

#[test]
fn what_was_run_is_seen() -> Result<()> {
    if !browser::is_there() {
        skipped("chromium is not installed");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    everything(folder.path())?;
    draw(folder.path(), "run")?;
    let page = folder.path().join("report.html");
    let mut grounds = Vec::new();
    for eye in [
        Eye { width: 1200, dark: false },
        Eye { width: 1200, dark: true },
        Eye { width: 360, dark: false },
        Eye { width: 360, dark: true },
    ] {
        let seen = seen(&page, eye)?;
        let number = |what: &str| seen[what].as_u64().unwrap_or(u64::MAX);
        ensure!(
            seen["title"] == "vmtape: run" && number("scripts") == 0 && number("images") == 0,
            "{eye:?}: {seen}"
        );
        ensure!(number("wide") <= number("window") && number("outside") == 0, "{eye:?}: {seen}");
        ensure!(number("faint") == 0, "{eye:?}: {seen}");
        let heads: Vec<_> =
            seen["heads"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(
            heads
                == [
                    "Comparisons",
                    "Verdicts",
                    "Findings",
                    "Moments at which the guest may move",
                    "Moves",
                    "Exits over time"
                ],
            "{eye:?}: {heads:?}"
        );
        for (what, count) in seen["drawn"].as_object().into_iter().flatten() {
            ensure!(count.as_u64() > Some(0), "{eye:?}: no {what}: {seen}");
        }
        let text = seen["text"].as_str().unwrap_or_default();
        for word in [
            EVIL,
            "silent-corruption",
            "accessed bit set here",
            "spte-flip #3",
            "vmtape inject plan.toml",
            "vmtape replay run/a.tape",
        ] {
            ensure!(text.contains(word), "{eye:?}: {word} is not to be seen: {text}");
        }
        grounds.push((seen["ground"].to_string(), seen["ink"].to_string()));
    }
    ensure!(grounds[0] == grounds[2] && grounds[1] == grounds[3] && grounds[0] != grounds[1], "{grounds:?}");
    ensure!(browser::print(&page)? >= 2, "it is too much for one sheet");
    Ok(())
}

/// What is not there is named, with the command that makes it.
#[test]
fn what_is_missing_is_seen() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let recorded = vmtape(path, &["record", "-q", "-b", "vmx", "-o", "a.tape", "builtin:hello"])?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    draw(path, "a.tape")?;
    let html = fs::read_to_string(path.join("report.html"))?;
    for command in ["migrate a.tape --at every-exit", "campaign run", "replay a.tape", "campaign report"] {
        ensure!(html.contains(command), "{command}: {html}");
    }
    fs::create_dir(path.join("run"))?;
    fs::write(path.join("run/b.tape"), "no tape")?;
    fs::write(path.join("run/c.json"), "{\"schema_version\": 1, \"hosts\": []}")?;
    fs::copy(path.join("a.tape"), path.join("run/a.tape"))?;
    draw(path, "run")?;
    let html = fs::read_to_string(path.join("report.html"))?;
    ensure!(html.contains("run&#x2f;b.tape: ") || html.contains("run/b.tape: "), "{html}");
    ensure!(html.contains("it is no answer that is drawn"), "{html}");
    Ok(())
}

#[test]
fn a_page_is_written_whole_or_not_at_all() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    fs::create_dir(path.join("empty"))?;
    fs::write(path.join("bent.tape"), "vmtape")?;
    fs::write(path.join("bent.json"), "{\"cells\": [1], \"by_exit\": {}}")?;
    fs::write(path.join("report.html"), "before")?;
    for of in ["empty", "bent.tape", "bent.json", "nowhere"] {
        let output = vmtape(path, &["report", of, "-o", "report.html"])?;
        ensure!(output.status.code() == Some(125), "{of}: {}", tail(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(told.matches(of).count() == 1, "it is named once: {of}: {told}");
        ensure!(fs::read_to_string(path.join("report.html"))? == "before");
    }
    Ok(())
}

/// A page is read in terminals too. What a tape says there controls none.
#[test]
fn nothing_on_a_page_controls_a_terminal() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let line = [
        "record",
        "-q",
        "-b",
        "vmx",
        "-o",
        "a.tape",
        "--append",
        "\x1b]0;owned\x07\u{9b}2J",
        "builtin:hello",
    ];
    let recorded = vmtape(path, &line)?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    draw(path, "a.tape")?;
    let page = fs::read_to_string(path.join("report.html"))?;
    ensure!(page.contains("]0;owned"), "the guest's arguments are on the page: {page}");
    let controls = |c: char| c.is_control() && c != '\n' && c != '\t';
    ensure!(!page.contains(controls), "{page:?}");
    for command in ["stat", "show", "replay"] {
        let output = vmtape(path, &[command, "a.tape"])?;
        ensure!(!String::from_utf8_lossy(&output.stdout).contains(controls), "{command}: {}", tail(&output));
    }
    Ok(())
}
