//! Small `trace.dat` files, written as trace-cmd's documentation describes them.

use std::collections::BTreeMap;

const COMMON: &str = "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
";

/// The events of these files, as kernel 6.12 describes them (reasons are shortened).
const EVENTS: [(u16, &str, &str, &str); 4] = [
    (
        EXIT,
        "kvm_exit",
        "\tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;
\tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u32 isa;\toffset:24;\tsize:4;\tsigned:0;
\tfield:u64 info1;\toffset:32;\tsize:8;\tsigned:0;
\tfield:u64 info2;\toffset:40;\tsize:8;\tsigned:0;
\tfield:u32 intr_info;\toffset:48;\tsize:4;\tsigned:0;
\tfield:u32 error_code;\toffset:52;\tsize:4;\tsigned:0;
\tfield:unsigned int vcpu_id;\toffset:56;\tsize:4;\tsigned:0;
",
        r#""vcpu %u reason %s%s%s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x", REC->vcpu_id, (REC->isa == 1) ? __print_symbolic(REC->exit_reason & 0xffff, { 48, "EPT_VIOLATION" }) : __print_symbolic(REC->exit_reason, { 0x400, "npf" }), (REC->isa == 1 && REC->exit_reason & ~0xffff) ? " " : "", (REC->isa == 1) ? __print_flags(REC->exit_reason & ~0xffff, " ", { 0x80000000, "FAILED_VMENTRY" }) : "", REC->guest_rip, REC->info1, REC->info2, REC->intr_info, REC->error_code"#,
    ),
    (
        ENTRY,
        "kvm_entry",
        "\tfield:unsigned int vcpu_id;\toffset:8;\tsize:4;\tsigned:0;
\tfield:unsigned long rip;\toffset:16;\tsize:8;\tsigned:0;
\tfield:bool immediate_exit;\toffset:24;\tsize:1;\tsigned:0;
",
        r#""vcpu %u, rip 0x%lx%s", REC->vcpu_id, REC->rip, REC->immediate_exit ? "[immediate exit]" : """#,
    ),
    (
        FPU,
        "kvm_fpu",
        "\tfield:u32 load;\toffset:8;\tsize:4;\tsigned:0;\n",
        r#""%s", __print_symbolic(REC->load, {0, "unload"}, {1, "load"})"#,
    ),
    (
        OTHER,
        "something_new",
        "\tfield:__data_loc char[] what;\toffset:8;\tsize:4;\tsigned:0;
\tfield:s32 count;\toffset:12;\tsize:4;\tsigned:1;
",
        r#""%-6s|%#06x %d %5s", __get_str(what), REC->count & 0xff, REC->count, REC->count < 0 ? "less" : "more""#,
    ),
];

pub const EXIT: u16 = 1600;
pub const ENTRY: u16 = 1601;
pub const FPU: u16 = 1602;
pub const OTHER: u16 = 1603;

/// An event, or a gap before the next one.
#[derive(Clone, Debug)]
pub enum Item {
    Event { cpu: u32, time: u64, data: Vec<u8> },
    Lost { cpu: u32, events: u64 },
}

fn common(id: u16, pid: u32) -> Vec<u8> {
    let mut data = id.to_le_bytes().to_vec();
    data.extend([0, 0]);
    data.extend(pid.to_le_bytes());
    data
}

pub fn exit(pid: u32, vcpu: u32, rip: u64, address: u64) -> Vec<u8> {
    let mut data = common(EXIT, pid);
    data.extend([0x400u64, rip, 2, 0x1_0000_0014, address, 0].iter().flat_map(|word| word.to_le_bytes()));
    data.extend(u64::from(vcpu).to_le_bytes());
    data
}

pub fn entry(pid: u32, vcpu: u32, rip: u64) -> Vec<u8> {
    let mut data = common(ENTRY, pid);
    data.extend([vcpu.into(), rip, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
    data
}

pub fn fpu(pid: u32, load: u32) -> Vec<u8> {
    let mut data = common(FPU, pid);
    data.extend(load.to_le_bytes());
    data
}

pub fn other(pid: u32, what: &str, count: i32) -> Vec<u8> {
    let mut data = common(OTHER, pid);
    data.extend((16 | (what.len() as u32 + 1) << 16).to_le_bytes());
    data.extend(count.to_le_bytes());
    data.extend(what.bytes());
    data.push(0);
    data.resize(data.len().next_multiple_of(4), 0);
    data
}

/// What a file is to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub version: u8,
    pub zstd: bool,
    pub clock: &'static str,
}

const PAGE: usize = 4096;

/// The ring buffer of one CPU.
fn pages(items: &[Item], of: u32) -> Vec<u8> {
    let mut pages: Vec<u8> = Vec::new();
    let (mut page, mut start, mut last) = (Vec::new(), 0u64, 0u64);
    let mut missed = None;
    let mut flush = |page: &mut Vec<u8>, start: u64, missed: &mut Option<u64>| {
        if page.is_empty() {
            return;
        }
        let mut commit = page.len() as u64;
        if let Some(events) = missed.take() {
            commit |= 1 << 31 | 1 << 30;
            page.extend(u64::to_le_bytes(events));
        }
        pages.extend(start.to_le_bytes());
        pages.extend(commit.to_le_bytes());
        pages.append(page);
        pages.resize(pages.len().next_multiple_of(PAGE), 0);
    };
    for item in items {
        match item {
            Item::Lost { cpu, events } if *cpu == of => {
                flush(&mut page, start, &mut missed);
                missed = Some(*events);
            }
            Item::Event { cpu, time, data } if *cpu == of => {
                if page.len() + data.len() + 16 + 8 > PAGE - 16 {
                    flush(&mut page, start, &mut missed);
                }
                if page.is_empty() {
                    (start, last) = (*time, *time);
                }
                let delta = time - last;
                if delta >> 27 != 0 {
                    page.extend((30 | (delta as u32 & 0x7ff_ffff) << 5).to_le_bytes());
                    page.extend(((delta >> 27) as u32).to_le_bytes());
                }
                let delta = if delta >> 27 != 0 { 0 } else { delta as u32 };
                last = *time;
                let words = data.len() as u32 / 4;
                if words <= 28 {
                    page.extend((words | delta << 5).to_le_bytes());
                } else {
                    page.extend((delta << 5).to_le_bytes());
                    page.extend((data.len() as u32 + 4).to_le_bytes());
                }
                page.extend(data);
            }
            _ => {}
        }
    }
    flush(&mut page, start, &mut missed);
    pages
}

fn format(id: u16, name: &str, fields: &str, print: &str) -> String {
    format!("name: {name}\nID: {id}\nformat:\n{COMMON}\n{fields}\nprint fmt: {print}\n")
}

/// The `format` files of the events.
pub fn format_files() -> Vec<String> {
    EVENTS.iter().map(|(id, name, fields, print)| format(*id, name, fields, print)).collect()
}

fn formats() -> Vec<u8> {
    let mut out = 1u32.to_le_bytes().to_vec();
    out.extend(b"kvm\0");
    out.extend((EVENTS.len() as u32).to_le_bytes());
    for (id, name, fields, print) in EVENTS {
        let text = format(id, name, fields, print);
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.bytes());
    }
    out
}

fn tasks(tasks: &BTreeMap<u32, &str>) -> Vec<u8> {
    let text: String = tasks.iter().map(|(pid, comm)| format!("{pid} {comm}\n")).collect();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.bytes());
    out
}

pub fn file(shape: Shape, comms: &BTreeMap<u32, &str>, items: &[Item]) -> Vec<u8> {
    let cpus = items.iter().map(|item| match item {
        Item::Event { cpu, .. } | Item::Lost { cpu, .. } => cpu + 1,
    });
    let cpus: Vec<_> = (0..cpus.max().unwrap_or(1)).map(|cpu| pages(items, cpu)).collect();
    let mut out = b"\x17\x08\x44tracing".to_vec();
    out.extend([b'0' + shape.version, 0, 0, 8]);
    out.extend((PAGE as u32).to_le_bytes());
    if shape.version == 6 { version_6(out, shape, comms, &cpus) } else { version_7(out, shape, comms, &cpus) }
}

fn version_6(mut out: Vec<u8>, shape: Shape, comms: &BTreeMap<u32, &str>, cpus: &[Vec<u8>]) -> Vec<u8> {
    for word in ["header_page\0", "header_event\0"] {
        out.extend(word.bytes());
        out.extend(0u64.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    out.extend(formats());
    out.extend([0; 8]);
    out.extend(tasks(comms));
    out.extend((cpus.len() as u32).to_le_bytes());
    out.extend(b"options  \0");
    let clock = format!("local [{}] global\0", shape.clock);
    out.extend(4u16.to_le_bytes());
    out.extend((clock.len() as u32).to_le_bytes());
    out.extend(clock.bytes());
    out.extend(0u16.to_le_bytes());
    out.extend(b"flyrecord\0");
    let mut at = (out.len() + 16 * cpus.len()).next_multiple_of(PAGE);
    for pages in cpus {
        out.extend((at as u64).to_le_bytes());
        out.extend((pages.len() as u64).to_le_bytes());
        at += pages.len();
    }
    out.resize(out.len().next_multiple_of(PAGE), 0);
    cpus.iter().for_each(|pages| out.extend(pages));
    out
}

fn version_7(mut out: Vec<u8>, shape: Shape, comms: &BTreeMap<u32, &str>, cpus: &[Vec<u8>]) -> Vec<u8> {
    out.extend(if shape.zstd { &b"zstd\x001.5.4\0"[..] } else { b"none\0\0" });
    let place = out.len();
    out.extend(0u64.to_le_bytes());
    let section = |out: &mut Vec<u8>, id: u16, data: &[u8], zstd: bool| {
        let at = out.len() as u64;
        let mut body = data.to_vec();
        if zstd {
            let packed = zstd::bulk::compress(data, 3).unwrap();
            body = (packed.len() as u32).to_le_bytes().to_vec();
            body.extend((data.len() as u32).to_le_bytes());
            body.extend(packed);
        }
        out.extend(id.to_le_bytes());
        out.extend(u16::from(zstd).to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend((body.len() as u64).to_le_bytes());
        out.extend(body);
        at
    };
    let formats = section(&mut out, 18, &formats(), shape.zstd);
    let tasks = section(&mut out, 21, &tasks(comms), shape.zstd);
    let buffer = out.len() as u64;
    out.extend(3u16.to_le_bytes());
    out.extend(u16::from(shape.zstd).to_le_bytes());
    out.extend([0; 12]);
    let mut table = buffer.to_le_bytes().to_vec();
    table.extend(format!("\0{}\0", shape.clock).bytes());
    table.extend((PAGE as u32).to_le_bytes());
    table.extend((cpus.len() as u32).to_le_bytes());
    for (cpu, pages) in cpus.iter().enumerate() {
        table.extend((cpu as u32).to_le_bytes());
        table.extend((out.len() as u64).to_le_bytes());
        table.extend((pages.len() as u64).to_le_bytes());
        if !shape.zstd {
            out.extend(pages);
            continue;
        }
        let chunks: Vec<_> = pages.chunks(2 * PAGE).collect();
        out.extend((chunks.len() as u32).to_le_bytes());
        for chunk in chunks {
            let packed = zstd::bulk::compress(chunk, 3).unwrap();
            out.extend((packed.len() as u32).to_le_bytes());
            out.extend((chunk.len() as u32).to_le_bytes());
            out.extend(packed);
        }
    }
    let mut options = Vec::new();
    let done = 0u64.to_le_bytes();
    for (id, data) in
        [(18u16, &formats.to_le_bytes()[..]), (21, &tasks.to_le_bytes()), (3, &table), (0, &done)]
    {
        options.extend(id.to_le_bytes());
        options.extend((data.len() as u32).to_le_bytes());
        options.extend(data);
    }
    let at = section(&mut out, 0, &options, false);
    out[place..place + 8].copy_from_slice(&at.to_le_bytes());
    out
}

/// Two CPUs, two machines, a long wait, an event that nobody knows, and a gap.
pub fn items() -> Vec<Item> {
    let event = |cpu, time, data| Item::Event { cpu, time, data };
    let mut items = Vec::new();
    for i in 0..400 {
        let at = 5_000_000_000 + i * 7_000;
        items.push(event(0, at, exit(186, 0, 0x1000 + i, 0xfee0_0000)));
        items.push(event(1, at + 400, fpu(187, (i & 1) as u32)));
        items.push(event(0, at + 1_600, entry(186, 0, 0x1002 + i)));
        items.push(event(1, at + 2_500, exit(290, 0, 0x2000 + i, 0x1000)));
    }
    items.push(Item::Lost { cpu: 1, events: 77 });
    let late = 5_000_000_000u64 + (1 << 31);
    items.push(event(0, late, other(3, "ab", -2)));
    items.push(event(1, late, entry(290, 0, 0x2002)));
    items.push(event(1, late + 1, other(3, "something longer", 9)));
    items
}

/// What tracefs prints of them.
pub fn text() -> String {
    let comm = |pid| match pid {
        186 => "CPU 0/KVM",
        187 => "vmm",
        290 => "other vmm",
        _ => "<...>",
    };
    let mut items = items();
    items.sort_by_key(|item| match item {
        Item::Event { cpu, time, .. } => (*time, *cpu),
        Item::Lost { .. } => (5_000_000_000 + (1 << 31), 1),
    });
    let mut text = String::new();
    for item in items {
        let (cpu, time, data) = match item {
            Item::Event { cpu, time, data } => (cpu, time, data),
            Item::Lost { cpu, events } => {
                text += &format!("CPU:{cpu} [LOST {events} EVENTS]\n");
                continue;
            }
        };
        let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
        let half = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
        let body = match half(0) as u16 {
            EXIT => format!(
                "kvm_exit: vcpu {} reason npf rip {:#x} info1 {:#018x} info2 {:#018x} intr_info 0x00000000 error_code 0x00000000",
                half(56),
                word(16),
                word(32),
                word(40),
            ),
            ENTRY => format!("kvm_entry: vcpu {}, rip {:#x}", half(8), word(16)),
            FPU => format!("kvm_fpu: {}", if half(8) == 1 { "load" } else { "unload" }),
            _ if half(12) == 9 => "something_new: something longer|0x0009 9  more".to_owned(),
            _ => "something_new: ab    |0x00fe -2  less".to_owned(),
        };
        let (pid, micros) = (half(4), (time + 500) / 1000);
        text += &format!(
            "{}-{pid} [{cpu:03}] ..... {}.{:06}: {body}\n",
            comm(pid),
            micros / 1_000_000,
            micros % 1_000_000
        );
    }
    text
}

pub fn comms() -> BTreeMap<u32, &'static str> {
    BTreeMap::from([(186, "CPU 0/KVM"), (187, "vmm"), (290, "other vmm")])
}
