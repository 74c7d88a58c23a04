//! From decoded instructions to host code.
//!
//! Most instructions become themselves, with their registers renamed to where the guest's are and their memory operand to an
//! address that was checked. Status flags stay in the host's, and are put into the frame only where something would destroy
//! them that is not entitled to it, or where the block may be left. RIP is never kept: it is a constant at each place.

mod branch;
mod code;
mod counted;
mod effect;
mod flags;
mod memory;
mod plan;
mod sse;
mod sse_forms;
mod stack;
mod state;

pub(crate) use code::{Leaving, leaving};

use branch::Branch;
use code::{Code, Translation};
use effect::Effect;
use iced_x86::{Encoder, Instruction};
use plan::Plan;
use sse::Sse;
use stack::Stack;

/// How many instructions a block must have for each time that it is left for the interpreter.
const WORTH: usize = 3;

/// How an instruction is translated.
enum Template {
    Itself(Plan, Effect),
    Branch(Branch),
    Stack(Stack),
    Sse(Sse),
    /// The interpreter has it.
    Handler,
}

/// Translates a block; `None`: there is too little to gain.
pub(crate) fn block(
    id: u32,
    first_link: u32,
    rip: u64,
    insns: &[Instruction],
    counts: bool,
) -> Option<Translation> {
    let (templates, live) = choose(insns);
    let is_handler = |n: usize| matches!(templates[n], Template::Handler);
    let leaves = (0..insns.len()).filter(|n| is_handler(*n) && (*n == 0 || !is_handler(n - 1))).count();
    if leaves * WORTH > insns.len() {
        return None;
    }
    let mut code = Code::new(id, first_link, rip, insns.len(), counts);
    code.enter_block();
    let mut at = rip;
    for (n, insn) in insns.iter().enumerate() {
        code.begin(n, at, live[n], live[n + 1]);
        match &templates[n] {
            Template::Itself(plan, effect) => plan::emit(&mut code, insn, plan, *effect),
            Template::Branch(branch) => branch::emit(&mut code, insn, *branch),
            Template::Stack(stack) => stack::emit(&mut code, *stack),
            Template::Sse(sse) => sse::emit(&mut code, insn, sse),
            // The interpreter goes on until there is a template again.
            Template::Handler if n > 0 && is_handler(n - 1) => {}
            Template::Handler => code.leave_to_handler(),
        }
        at = at.wrapping_add(insn.len() as u64);
        let resumes = is_handler(n) && (n + 1 < insns.len() && !is_handler(n + 1));
        if resumes {
            code.resume_behind();
        }
    }
    let ended = match templates.last()? {
        Template::Branch(branch) => branch.ends(),
        Template::Handler => true,
        _ => false,
    };
    if !ended {
        code.leave_to(at);
    }
    code.finish()
}

/// The templates of a block, and for each instruction and the end whether anybody may want the status flags that are there before it:
/// another instruction, or whoever sees the state where the block is left.
fn choose(insns: &[Instruction]) -> (Vec<Template>, Vec<bool>) {
    let mut encoder = Encoder::new(64);
    let mut live = vec![true; insns.len() + 1];
    let mut templates = Vec::with_capacity(insns.len());
    for (n, insn) in insns.iter().enumerate().rev() {
        let template = template(&mut encoder, insn, live[n + 1]);
        live[n] = match &template {
            Template::Itself(_, effect) => effect::has_memory(insn) || effect.wants_flags(live[n + 1]),
            _ => true,
        };
        templates.push(template);
    }
    templates.reverse();
    (templates, live)
}

fn template(encoder: &mut Encoder, insn: &Instruction, live_after: bool) -> Template {
    match effect::of(insn, live_after) {
        Effect::Unknown => branch::of(insn)
            .map(Template::Branch)
            .or_else(|| stack::of(insn).map(Template::Stack))
            .or_else(|| sse::of(encoder, insn).map(Template::Sse))
            .unwrap_or(Template::Handler),
        effect => match plan::make(encoder, insn) {
            Some(plan) => Template::Itself(plan, effect),
            None => Template::Handler,
        },
    }
}
