//! A print format over a record: the text that the kernel prints.
//!
//! See: lib/vsprintf.c, kernel/trace/trace_output.c trace_print_symbols_seq(), trace_print_flags_seq() (6.12)

use super::{
    Raw,
    parse::{Conversion, Expr, Piece, Print, Size},
};
use std::{borrow::Cow, fmt::Write};

/// What an expression is worth.
enum Value<'a> {
    Number(i128),
    Text(Cow<'a, str>),
}

/// Constants that formats name without their value. See: arch/x86/include/asm/vdso/clocksource.h,
/// include/vdso/clocksource.h, arch/x86/include/asm/kvm_host.h (6.1, 6.12)
const CONSTANTS: [(&str, i128); 7] = [
    ("VDSO_CLOCKMODE_NONE", 0),
    ("VDSO_CLOCKMODE_TSC", 1),
    ("APICV_INHIBIT_REASON_DISABLE", 0),
    ("APICV_INHIBIT_REASON_DISABLED", 0),
    ("APICV_INHIBIT_REASON_HYPERV", 1),
    ("APICV_INHIBIT_REASON_ABSENT", 2),
    ("APICV_INHIBIT_REASON_BLOCKIRQ", 3),
];
/// No text of an event is longer: beyond this a format is none.
const LONGEST: usize = 8 << 10;
/// Few are longer than this.
const USUAL: usize = 128;

/// The text, or `None` where the format needs more than a record has.
pub fn text<'a>(print: &'a Print, raw: &Raw<'a>) -> Option<String> {
    let mut out = String::with_capacity(USUAL);
    let mut args = print.args.iter();
    for piece in &print.pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Conversion(conversion) => convert(&mut out, conversion, &mut args, raw)?,
        }
        if out.len() > LONGEST {
            return None;
        }
    }
    Some(out)
}

fn convert<'a>(
    out: &mut String,
    c: &Conversion,
    args: &mut impl Iterator<Item = &'a Expr>,
    raw: &Raw<'a>,
) -> Option<()> {
    let mut size = |size| match size {
        Size::None => Some(None),
        Size::Fixed(size) => Some(Some(size)),
        Size::Argument => match value(args.next()?, raw)? {
            Value::Number(number) => usize::try_from(number).ok().filter(|n| *n <= 256).map(Some),
            Value::Text(_) => None,
        },
    };
    let (width, precision) = (size(c.width)?, size(c.precision)?);
    let body = match (c.kind, value(args.next()?, raw)?) {
        ('s', Value::Text(text)) => match precision.and_then(|most| text.char_indices().nth(most)) {
            Some((end, _)) => Cow::Owned(text[..end].to_owned()),
            None => text,
        },
        ('s', Value::Number(_)) | (_, Value::Text(_)) => return None,
        ('c', Value::Number(number)) => match number as u8 {
            0 => Cow::default(),
            byte => char::from(byte).to_string().into(),
        },
        (_, Value::Number(number)) => integer(c, number, precision).into(),
    };
    let Some(width) = width else {
        out.push_str(&body);
        return Some(());
    };
    let missing = width.saturating_sub(body.chars().count());
    let digits = !"sc".contains(c.kind);
    if c.left {
        let _ = write!(out, "{body}{:missing$}", "");
    } else if c.zero && digits && precision.is_none() {
        // Zeros stand behind the sign and the prefix.
        let head = body.find(|c: char| c.is_ascii_hexdigit()).unwrap_or(0);
        let head =
            if body[head..].starts_with("0x") || body[head..].starts_with("0X") { head + 2 } else { head };
        let _ = write!(out, "{}{:0missing$}{}", &body[..head], "", &body[head..]);
        if missing > 0 {
            // Rust pads an empty string with blanks whatever the flag.
            let from = out.len() - (body.len() - head) - missing;
            out.replace_range(from..from + missing, &"0".repeat(missing));
        }
    } else {
        let _ = write!(out, "{:missing$}{body}", "");
    }
    Some(())
}

/// A number as `%d`, `%u`, `%x`, ...: of as many bits as the conversion takes.
fn integer(c: &Conversion, number: i128, precision: Option<usize>) -> String {
    let unused = 64 - c.bits.clamp(8, 64);
    let bits = (number as u64) << unused >> unused;
    let signed = ((number as u64) << unused).cast_signed() >> unused;
    let (sign, digits) = match c.kind {
        'd' | 'i' => {
            let sign = match signed {
                ..0 => "-",
                _ if c.plus => "+",
                _ if c.space => " ",
                _ => "",
            };
            (sign, signed.unsigned_abs().to_string())
        }
        'u' => ("", bits.to_string()),
        'o' => ("", format!("{bits:o}")),
        'X' => (if c.alternate && bits != 0 { "0X" } else { "" }, format!("{bits:X}")),
        'p' => ("", format!("{bits:016x}")),
        _ => (if c.alternate { "0x" } else { "" }, format!("{bits:x}")),
    };
    format!("{sign}{digits:0>width$}", width = precision.unwrap_or(0))
}

fn number(expr: &Expr, raw: &Raw<'_>) -> Option<i128> {
    match value(expr, raw)? {
        Value::Number(number) => Some(number),
        Value::Text(_) => None,
    }
}

fn value<'a>(expr: &'a Expr, raw: &Raw<'a>) -> Option<Value<'a>> {
    Some(Value::Number(match expr {
        Expr::Number(number) => *number,
        Expr::Text(text) => return Some(Value::Text(text.into())),
        Expr::Field(place) => return field((*place)?, raw),
        Expr::Unknown(name, _) => CONSTANTS.iter().find(|(known, _)| known == name)?.1,
        Expr::Pair(..) => return None,
        Expr::Choice(condition, yes, no) => {
            return value(if number(condition, raw)? != 0 { yes } else { no }, raw);
        }
        Expr::Cast(bits, signed, inner) => {
            let unused = 64 - bits;
            let word = (number(inner, raw)? as u64) << unused;
            if *signed { (word.cast_signed() >> unused).into() } else { (word >> unused).into() }
        }
        Expr::Unary(sign, inner) => {
            let inner = number(inner, raw)?;
            match sign {
                '!' => (inner == 0).into(),
                '~' => !inner,
                '-' => -inner,
                _ => inner,
            }
        }
        Expr::Binary(sign, left, right) => binary(sign, number(left, raw)?, || number(right, raw))?,
        Expr::Call(name, args) => return call(name, args, raw),
    }))
}

fn binary(sign: &str, a: i128, right: impl Fn() -> Option<i128>) -> Option<i128> {
    match sign {
        "&&" => return Some((a != 0 && right()? != 0).into()),
        "||" => return Some((a != 0 || right()? != 0).into()),
        _ => {}
    }
    let b = right()?;
    let shift = || u32::try_from(b).ok().filter(|shift| *shift < 64);
    Some(match sign {
        "|" => a | b,
        "^" => a ^ b,
        "&" => a & b,
        "==" => (a == b).into(),
        "!=" => (a != b).into(),
        "<=" => (a <= b).into(),
        ">=" => (a >= b).into(),
        "<" => (a < b).into(),
        ">" => (a > b).into(),
        "<<" => i128::from((a as u64) << shift()?),
        ">>" => a >> shift()?,
        "+" => a.checked_add(b)?,
        "-" => a.checked_sub(b)?,
        "*" => a.checked_mul(b)?,
        "/" => a.checked_div(b)?,
        "%" => a.checked_rem(b)?,
        _ => return None,
    })
}

/// A field's number, or its bytes as a string if it is an array of characters.
fn field<'a>(place: usize, raw: &Raw<'a>) -> Option<Value<'a>> {
    let field = raw.format.field(place)?;
    if field.array == tracepoint_decode::PerfFieldArray::None {
        let value = raw.value_of(field)?;
        return Some(Value::Number(if field.signed { value.cast_signed().into() } else { value.into() }));
    }
    Some(Value::Text(string(raw.array_of(field)?)))
}

/// Bytes up to the zero that ends them.
fn string(bytes: &[u8]) -> Cow<'_, str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

fn array<'a>(expr: &Expr, raw: &Raw<'a>) -> Option<&'a [u8]> {
    match expr {
        Expr::Field(place) | Expr::Unknown(_, place) => raw.array_of(raw.format.field((*place)?)?),
        Expr::Call(name, args)
            if name.contains("get_dynamic_array") || name.contains("get_rel_dynamic_array") =>
        {
            array(args.first()?, raw)
        }
        _ => None,
    }
}

fn call<'a>(name: &str, args: &'a [Expr], raw: &Raw<'a>) -> Option<Value<'a>> {
    Some(Value::Text(match name {
        "__print_symbolic" | "__print_symbolic_u64" => {
            let (of, table) = args.split_first()?;
            let of = number(of, raw)?;
            let named = pairs(table, raw).find(|(value, _)| *value == of);
            named.map_or_else(|| format!("{:#x}", of as u64).into(), |(_, name)| name.into())
        }
        "__print_flags" | "__print_flags_u64" => flags(args, raw)?.into(),
        "__print_hex" => hex(args, raw)?.join(" ").into(),
        "__print_hex_str" => hex(args, raw)?.concat().into(),
        "__get_str" | "__get_rel_str" | "__get_dynamic_array" => string(array(args.first()?, raw)?),
        "__get_dynamic_array_len" => return Some(Value::Number(array(args.first()?, raw)?.len() as i128)),
        _ => return None,
    }))
}

/// The pairs of a table whose values are known.
fn pairs<'a>(table: &'a [Expr], raw: &Raw<'a>) -> impl Iterator<Item = (i128, &'a str)> {
    table.iter().filter_map(|pair| match pair {
        Expr::Pair(value, name) => Some((number(value, raw)?, name.as_str())),
        _ => None,
    })
}

fn flags(args: &[Expr], raw: &Raw<'_>) -> Option<String> {
    let (of, rest) = args.split_first()?;
    let (Expr::Text(between), table) = rest.split_first()? else { return None };
    let mut rest = number(of, raw)? as u64;
    let mut words = Vec::new();
    for (mask, name) in pairs(table, raw) {
        let mask = mask as u64;
        if rest & mask == mask {
            words.push(name.to_owned());
            rest &= !mask;
        }
    }
    if rest != 0 {
        words.push(format!("{rest:#x}"));
    }
    Some(words.join(between))
}

fn hex(args: &[Expr], raw: &Raw<'_>) -> Option<Vec<String>> {
    let [bytes, len] = args else { return None };
    let len = usize::try_from(number(len, raw)?).ok()?;
    Some(array(bytes, raw)?.iter().take(len).map(|byte| format!("{byte:02x}")).collect())
}
