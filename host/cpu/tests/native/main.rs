//! The interpreter against the processor that the test runs on: every instruction form from the same random states.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod case;
mod compare;
mod forms;
mod images;
mod interpreter;
mod kept;
mod operands;
mod random;
mod segments;
mod silicon;

use case::{Case, WINDOW};
use compare::{Outcome, difference};
use forms::Form;
use interpreter::Interpreter;
use kept::{Against, Digest, Digests};
use rand_pcg::Pcg64;
use silicon::{Context, Mode, Silicon};
use std::{collections::BTreeMap, sync::Mutex};

/// Encodings per form, and states per encoding: thousands of states for each form.
const ENCODINGS: usize = 50;
const STATES: usize = 40;
/// Fewer forms than this, and the list has lost something.
const LEAST_FORMS: usize = 400;

const LOCK_PREFIX: u8 = 0xf0;

/// The pages lie at fixed addresses, so one test at a time.
static PAGES: Mutex<()> = Mutex::new(());

#[test]
fn state_images_are_saved_and_restored_as_on_this_processor() {
    let features = ["xsave", "xsaveopt", "xsavec", "avx"];
    let _pages = PAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !(is_x86_feature_detected!("xsavec")
        && is_x86_feature_detected!("xsaveopt")
        && is_x86_feature_detected!("avx"))
    {
        eprintln!("SKIPPED, LOUDLY: this processor lacks one of {features:?}");
        return;
    }
    let silicon = Silicon::new(Mode::Bits64);
    let mut interpreter = Interpreter::new(Mode::Bits64);
    let differences = images::check(&silicon, &mut |bytes, offset, outcome| {
        interpreter.load(&silicon.code(), bytes.len());
        outcome.ending = interpreter.run(&mut outcome.context, offset, &mut outcome.data);
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn instructions_behave_as_on_this_processor() {
    let forms = compare_forms(Mode::Bits64, ENCODINGS);
    assert!(forms >= LEAST_FORMS, "only {forms} forms are tested");
}

/// The same for code that the compiler has made of the instructions.
#[test]
fn compiled_instructions_behave_as_on_this_processor() {
    let mut compiled = Interpreter::compiled(Mode::Bits64);
    compare_forms_with(Mode::Bits64, ENCODINGS / 5, &mut compiled);
    assert!(compiled.entered() > 10_000, "little was compiled: {}", compiled.entered());
}

#[test]
fn compatibility_mode_behaves_as_on_this_processor() {
    compare_forms(Mode::Bits32, ENCODINGS / 2);
}

#[test]
fn sixteen_bit_code_behaves_as_on_this_processor() {
    compare_forms(Mode::Bits16, ENCODINGS / 2);
}

#[test]
fn segments_are_loaded_and_checked_as_on_this_processor() {
    let _pages = PAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let silicon = Silicon::new(segments::MODE);
    let mut interpreter = Interpreter::new(segments::MODE);
    let differences = segments::check(&silicon, &mut interpreter);
    println!("{}", differences.join("\n"));
    assert!(differences.is_empty(), "{} programs differ", differences.len());
}

/// LOCK is for a few instructions with a memory destination; before any other it is #UD, whatever else is wrong.
#[test]
fn lock_elsewhere_is_undefined() {
    let _pages = PAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let silicon = Silicon::new(Mode::Bits64);
    let mut interpreter = Interpreter::new(Mode::Bits64);
    let mut rng = Pcg64::new(2, 0x6c6f_636b);
    let lockable = |form: &Form| form.memory && form.code.op_code().can_use_lock_prefix();
    for form in forms::all(Mode::Bits64).iter().filter(|form| !lockable(form)) {
        let Some(case) = Case::new(form, &mut rng).filter(|case| case.bytes.len() < 15) else { continue };
        let bytes = [&[LOCK_PREFIX], &case.bytes[..]].concat();
        silicon.load(&bytes);
        interpreter.load(&silicon.code(), bytes.len());
        let (before, data) = case.state(&mut rng);
        let mut native = Outcome { context: before.clone(), data, ending: silicon::Ending::Next };
        let mut ours = Outcome { context: before.clone(), data, ending: silicon::Ending::Next };
        native.ending = silicon.run(&mut native.context, WINDOW, &mut native.data);
        ours.ending = interpreter.run(&mut ours.context, WINDOW, &mut ours.data);
        assert_eq!(ours.ending, native.ending, "{} {bytes:02x?}", form.name());
    }
}

/// On every processor: what the interpreter makes of a vendor is what was equal to that vendor's silicon when it was kept.
#[test]
fn kept_silicon_is_still_met() {
    let _pages = PAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for kept in kept::ALL {
        let mut digests = Digests::default();
        let mut known = true;
        for (mode, encodings) in
            [(Mode::Bits64, ENCODINGS), (Mode::Bits32, ENCODINGS / 2), (Mode::Bits16, ENCODINGS / 2)]
        {
            let silicon = Silicon::new(mode);
            let mut interpreter = Interpreter::of(mode, kept.vendor);
            let all = forms::all(mode);
            known &= kept.has(mode, all.len());
            for (number, form) in all.iter().enumerate() {
                let mut rng = Pcg64::new(number as u128, 0x7461_7065);
                let mut digest = Digest::default();
                let against = Against::Kept(&mut digest);
                check(form, encodings, &silicon, &mut interpreter, &mut rng, against)
                    .unwrap_or_else(|why| panic!("{}: {why}", form.name()));
                digests.add(form, &digest);
            }
        }
        if !known {
            eprintln!("SKIPPED, LOUDLY: this processor has other instruction forms than {}", kept.name);
            continue;
        }
        let differences = kept.differences(&digests);
        assert!(differences.is_empty(), "no longer as {}: {differences:?}", kept.name);
    }
}

/// Compares every form of a mode that VMTAPE_NATIVE_FORMS, if it is set, is part of the name of; how many there are.
fn compare_forms(mode: Mode, encodings: usize) -> usize {
    let (forms, digests) = compare_forms_with(mode, encodings, &mut Interpreter::new(mode));
    kept::record(&digests);
    forms
}

fn compare_forms_with(mode: Mode, encodings: usize, interpreter: &mut Interpreter) -> (usize, Digests) {
    let _pages = PAGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let silicon = Silicon::new(mode);
    let only = std::env::var("VMTAPE_NATIVE_FORMS").ok();
    let all = forms::all(mode);
    let chosen = |form: &&Form| only.as_ref().is_none_or(|part| form.name().contains(part));
    let mut failures = BTreeMap::new();
    let mut digests = Digests::default();
    let mut states = 0;
    for (number, form) in all.iter().filter(chosen).enumerate() {
        let mut rng = Pcg64::new(number as u128, 0x7461_7065);
        let mut digest = Digest::default();
        match check(form, encodings, &silicon, interpreter, &mut rng, Against::Silicon(&mut digest)) {
            Ok(count) => {
                states += count;
                digests.add(form, &digest);
            }
            Err(why) => {
                failures.insert(form.name(), why);
            }
        }
    }
    println!("{mode:?}: {} forms, {states} states, {} failures", all.len(), failures.len());
    for (form, why) in &failures {
        println!("{form}: {why}");
    }
    assert!(failures.is_empty(), "{} of {} forms differ", failures.len(), all.len());
    (all.len(), digests)
}

/// Runs one form; the number of states, or the first difference.
fn check(
    form: &Form,
    encodings_wanted: usize,
    silicon: &Silicon,
    interpreter: &mut Interpreter,
    rng: &mut Pcg64,
    mut against: Against<'_>,
) -> Result<usize, String> {
    let mut encodings = 0;
    for _ in 0..20 * encodings_wanted {
        let Some(case) = Case::new(form, rng) else { continue };
        silicon.load(&case.bytes);
        interpreter.load(&silicon.code(), case.bytes.len());
        let pages = random::pages(rng);
        silicon.set_data(&pages);
        interpreter.set_data(&pages);
        for _ in 0..STATES {
            let (before, data) = case.state(rng);
            let mut native = Outcome { context: before.clone(), data, ending: silicon::Ending::Next };
            let mut ours = Outcome { context: before.clone(), data, ending: silicon::Ending::Next };
            ours.ending = interpreter.run(&mut ours.context, WINDOW, &mut ours.data);
            against.digest().add(&ours);
            if against.is_kept() {
                continue;
            }
            native.ending = silicon.run(&mut native.context, WINDOW, &mut native.data);
            if let Some(difference) = difference(&case, &before, &native, &ours) {
                return Err(format!("{difference}; {}", case.describe(&before)));
            }
        }
        if !against.is_kept()
            && silicon.data() != interpreter.data()
            && !case::may_be_undefined(form.mnemonic())
        {
            return Err(format!("memory outside the window differs; {}", case.describe(&Context::new())));
        }
        encodings += 1;
        if encodings == encodings_wanted {
            break;
        }
    }
    if encodings == 0 { Err("cannot be encoded".to_owned()) } else { Ok(encodings * STATES) }
}
