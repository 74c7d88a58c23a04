//! What hosts are, and what to pin.

use super::{escape, push};
use crate::commands::check::{
    fleet::{Matrix, Row},
    pins::Pinned,
};

/// What the widths are, which are so often taken for one another.
const HEADS: [(&str, &str); 9] = [
    ("host", "as its passport names it"),
    ("vendor", "of its processor"),
    ("backend", "what stands for its silicon and KVM"),
    ("CPU", "physical address bits of the processor (CPUID 0x80000008)"),
    ("KVM", "physical address bits that KVM tells guests"),
    ("maps", "bits of guest physical addresses that the tables below the guest reach"),
    ("IOMMU", "address bits that devices reach"),
    ("levels", "paging levels that guests may use"),
    ("hides width", "KVM_CAP_SMALLER_MAXPHYADDR: a narrower guest gets its own reserved bits"),
];

/// The table of hosts, with a picture of each one's widths.
pub fn hosts(matrix: &Matrix) -> String {
    let mut html =
        "<h2>Hosts</h2>\n<div class=\"scroll\" role=\"region\" aria-label=\"Hosts\" tabindex=\"0\">\
                    <table class=\"hosts\">\n<thead><tr>"
            .to_owned();
    for (head, title) in HEADS {
        html += &format!("<th scope=\"col\" title=\"{title}\">{head}</th>");
    }
    html += "<th scope=\"col\">32 to 52 bits</th></tr></thead>\n<tbody>\n";
    for host in &matrix.hosts {
        let iommu = host.iommu_bits.map_or("\u{2013}".to_owned(), |bits| bits.to_string());
        push(
            &mut html,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{iommu}</td>\
                 <td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&host.name),
                escape(&host.vendor),
                escape(&host.backend),
                host.phys_bits,
                host.kvm_phys_bits,
                host.mappable_bits,
                host.guest_levels,
                if host.hides_width { "yes" } else { "no" },
                widths(host)
            ),
        );
    }
    html += "</tbody></table></div>\n";
    html + "<p class=\"soft\">Grey: the processor's width; green: what a guest's addresses can be mapped to; the line: what \
            devices reach.</p>\n"
}

/// A host's widths between 32 and 52 bits: what its CPU has, and inside it what guests can be mapped.
fn widths(host: &Row) -> String {
    const FROM: u8 = 32;
    const TO: u8 = 52;
    const SCALE: usize = 8;
    let x = |bits: u8| usize::from(bits.clamp(FROM, TO) - FROM) * SCALE;
    let mapped = host.mappable_bits.min(host.kvm_phys_bits);
    let mut svg = format!(
        "<svg width=\"{}\" height=\"18\" role=\"img\" aria-label=\"{} bits, {mapped} mapped\">\
         <rect class=\"bar\" y=\"3\" width=\"{}\" height=\"12\" rx=\"3\"/>\
         <rect class=\"safe\" y=\"6\" width=\"{}\" height=\"6\" rx=\"2\"/>",
        x(TO) + 2,
        host.phys_bits,
        x(host.phys_bits),
        x(mapped)
    );
    if let Some(bits) = host.iommu_bits {
        svg += &format!("<rect class=\"refused\" x=\"{}\" width=\"2\" height=\"18\"/>", x(bits));
    }
    svg + "</svg>"
}

/// The settings, and what is left with them.
pub fn pinned(pinned: &Pinned) -> String {
    let mut html = "<h2>What to pin</h2>\n".to_owned();
    if pinned.settings.is_empty() {
        return html + "<p>Nothing needs to be pinned.</p>\n";
    }
    if !pinned.qemu.is_empty() {
        push(&mut html, format_args!("<p>QEMU:</p>\n<pre>-cpu MODEL,{}</pre>", escape(&pinned.qemu)));
    }
    if !pinned.libvirt.is_empty() {
        push(&mut html, format_args!("<p>libvirt:</p>\n<pre>{}</pre>", escape(&pinned.libvirt.join("\n"))));
    }
    let hosts = pinned.hosts.iter().map(|host| format!("{}: {}", host.host, host.setting));
    let hosts = pinned.needs.iter().map(ToString::to_string).chain(hosts);
    let conflicts = pinned.settings.conflicts.iter().map(|conflict| format!("cannot be had: {conflict}"));
    html += &list(hosts.chain(conflicts));
    push(
        &mut html,
        format_args!("<p>Tried: <b>{} of {}</b> moves are safe with that.</p>", pinned.safe, pinned.moves),
    );
    if !pinned.left.is_empty() {
        push(
            &mut html,
            format_args!(
                "<details><summary>What is left</summary>\n{}</details>",
                list(pinned.left.iter().map(ToString::to_string))
            ),
        );
    }
    html
}

fn list(lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("<li>{}</li>\n", escape(&line))).collect();
    if lines.is_empty() { lines } else { format!("<ul>\n{lines}</ul>\n") }
}
