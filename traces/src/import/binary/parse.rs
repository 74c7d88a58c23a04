//! The `print fmt` of a tracepoint: a format string and C expressions over the fields.
//!
//! See: Documentation/trace/events.rst 2.1 (6.12), include/trace/stages/stage3_trace_output.h (6.12)

/// A parsed print format.
#[derive(Debug)]
pub struct Print {
    pub pieces: Vec<Piece>,
    pub args: Vec<Expr>,
}

/// A part of a format string.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Text(String),
    Conversion(Conversion),
}

/// `%#016llx`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversion {
    pub alternate: bool,
    pub zero: bool,
    pub left: bool,
    pub plus: bool,
    pub space: bool,
    pub width: Size,
    pub precision: Size,
    /// Bits of the argument.
    pub bits: u32,
    pub kind: char,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Size {
    #[default]
    None,
    Fixed(usize),
    /// `*`: the argument before.
    Argument,
}

#[derive(Debug)]
pub enum Expr {
    Number(i128),
    Text(String),
    /// The place of a field among its event's; `None`: it has none of this name.
    Field(Option<usize>),
    /// A constant whose value the format file does not have, or an array that a call takes by its name.
    Unknown(String, Option<usize>),
    Unary(char, Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    Choice(Box<Expr>, Box<Expr>, Box<Expr>),
    /// To an integer type of so many bits, signed or not.
    Cast(u32, bool, Box<Expr>),
    Call(String, Vec<Expr>),
    /// `{ value, "name" }`
    Pair(Box<Expr>, String),
}

/// Nested deeper than this, a format is none.
const DEEPEST: u32 = 64;
/// No width in a format is greater.
const WIDEST: usize = 256;

impl Print {
    /// `place`: which of the event's fields has a name.
    pub fn parse(text: &str, place: &dyn Fn(&str) -> Option<usize>) -> Option<Self> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0, place };
        let format = parser.string()?;
        let mut args = Vec::new();
        while parser.eat(",") {
            args.push(parser.expression()?);
        }
        if parser.at != parser.tokens.len() {
            return None;
        }
        Some(Self { pieces: pieces(&format)?, args })
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Number(i128),
    Text(String),
    Name(String),
    Sign(&'static str),
}

const SIGNS: [&str; 30] = [
    "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "->", "(", ")", "{", "}", "[", "]", ",", "?", ":", "+",
    "-", "*", "/", "%", "&", "|", "^", "~", "!", "<", ">",
];

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut rest = text.trim_start();
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '"' => {
                let (text, after) = literal(&rest[1..])?;
                (Token::Text(text), after)
            }
            '0'..='9' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
                (Token::Number(number(&rest[..end])?), &rest[end..])
            }
            'a'..='z' | 'A'..='Z' | '_' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                (Token::Name(rest[..end].to_owned()), &rest[end..])
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign))?;
                (Token::Sign(sign), &rest[sign.len()..])
            }
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Some(tokens)
}

/// A string literal behind its opening quote, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => out.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            _ => out.push(c),
        }
    }
    None
}

/// `0x10UL`
fn number(word: &str) -> Option<i128> {
    let digits = word.trim_end_matches(['u', 'U', 'l', 'L']);
    match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) => i128::from_str_radix(hex, 16).ok(),
        None if digits.len() > 1 && digits.starts_with('0') => i128::from_str_radix(digits, 8).ok(),
        None => digits.parse().ok(),
    }
    .filter(|value| *value <= i128::from(u64::MAX))
}

struct Parser<'a> {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
    place: &'a dyn Fn(&str) -> Option<usize>,
}

/// Binary operators from the loosest to the tightest.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

impl Parser<'_> {
    fn eat(&mut self, sign: &str) -> bool {
        let is = matches!(self.tokens.get(self.at), Some(Token::Sign(found)) if *found == sign);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, sign: &str) -> Option<()> {
        self.eat(sign).then_some(())
    }

    fn name(&mut self) -> Option<String> {
        let Some(Token::Name(name)) = self.tokens.get(self.at) else { return None };
        let name = name.clone();
        self.at += 1;
        Some(name)
    }

    /// One or more literals, which C puts together.
    fn string(&mut self) -> Option<String> {
        let mut text = None;
        while let Some(Token::Text(part)) = self.tokens.get(self.at) {
            text.get_or_insert_with(String::new).push_str(part);
            self.at += 1;
        }
        text
    }

    fn expression(&mut self) -> Option<Expr> {
        self.depth += 1;
        let expression = if self.depth > DEEPEST { None } else { self.choice() };
        self.depth -= 1;
        expression
    }

    fn choice(&mut self) -> Option<Expr> {
        let condition = self.binary(0)?;
        if !self.eat("?") {
            return Some(condition);
        }
        let yes = self.expression()?;
        self.expect(":")?;
        let no = self.expression()?;
        Some(Expr::Choice(condition.into(), yes.into(), no.into()))
    }

    fn binary(&mut self, level: usize) -> Option<Expr> {
        let Some(signs) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(sign) = signs.iter().find(|sign| self.eat(sign)) {
            let right = self.binary(level + 1)?;
            left = Expr::Binary(sign, left.into(), right.into());
        }
        Some(left)
    }

    fn unary(&mut self) -> Option<Expr> {
        for sign in ["!", "~", "-", "+"] {
            if self.eat(sign) {
                self.depth += 1;
                let operand = if self.depth > DEEPEST { None } else { self.unary() };
                self.depth -= 1;
                return Some(Expr::Unary(sign.chars().next()?, operand?.into()));
            }
        }
        if let Some((bits, signed)) = self.cast() {
            let operand = self.unary()?;
            return Some(if bits == 0 { operand } else { Expr::Cast(bits, signed, operand.into()) });
        }
        self.primary()
    }

    /// `(unsigned long)`: bits and whether it is signed; 0 bits for a pointer, which changes nothing.
    fn cast(&mut self) -> Option<(u32, bool)> {
        let start = self.at;
        let found = self.eat("(").then(|| self.type_name()).flatten().filter(|_| self.eat(")"));
        if found.is_none() {
            self.at = start;
        }
        found
    }

    fn type_name(&mut self) -> Option<(u32, bool)> {
        let mut words = Vec::new();
        while let Some(name) = self.name() {
            words.push(name);
        }
        let pointer = self.eat("*");
        while self.eat("*") {}
        let is = |word: &str| words.iter().any(|found| found == word);
        let known =
            ["char", "short", "int", "long", "unsigned", "signed", "bool", "void", "struct", "const", "enum"];
        let sized = words.last().and_then(|word| sized(word));
        if words.is_empty() || !(sized.is_some() || words.iter().any(|word| known.contains(&word.as_str()))) {
            return None;
        }
        if pointer {
            return Some((0, false));
        }
        let bits = match () {
            () if is("char") || is("bool") => 8,
            () if is("short") => 16,
            () if is("long") => 64,
            () => 32,
        };
        Some(sized.unwrap_or((bits, !is("unsigned") && !is("bool"))))
    }

    fn primary(&mut self) -> Option<Expr> {
        if self.eat("(") {
            let inner = self.expression()?;
            self.expect(")")?;
            return Some(inner);
        }
        if self.eat("{") {
            let value = self.expression()?;
            self.expect(",")?;
            let name = self.string()?;
            self.expect("}")?;
            return Some(Expr::Pair(value.into(), name));
        }
        if let Some(text) = self.string() {
            return Some(Expr::Text(text));
        }
        if let Some(Token::Number(number)) = self.tokens.get(self.at) {
            let number = *number;
            self.at += 1;
            return Some(Expr::Number(number));
        }
        let name = self.name()?;
        if name == "REC" {
            self.expect("->")?;
            let name = self.name()?;
            return Some(Expr::Field((self.place)(&name)));
        }
        if self.eat("(") {
            return Some(Expr::Call(name, self.arguments()?));
        }
        let place = (self.place)(&name);
        Some(Expr::Unknown(name, place))
    }

    fn arguments(&mut self) -> Option<Vec<Expr>> {
        let mut arguments = Vec::new();
        while !self.eat(")") {
            if self.eat("{") {
                // The end of an empty table: `{ }`, `{ -1, ((void *)0) }`.
                if self.eat("}") {
                    self.eat(",");
                    continue;
                }
                self.at -= 1;
            }
            arguments.push(self.expression()?);
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        Some(arguments)
    }
}

fn sized(word: &str) -> Option<(u32, bool)> {
    let word = word.trim_start_matches('_').trim_end_matches("_t");
    Some(match word {
        "u8" | "uint8" => (8, false),
        "u16" | "uint16" => (16, false),
        "u32" | "uint32" | "gfp" | "dev" => (32, false),
        "u64" | "uint64" | "gpa" | "gfn" | "gva" | "hpa" | "size" => (64, false),
        "s8" | "int8" => (8, true),
        "s16" | "int16" => (16, true),
        "s32" | "int32" | "pid" => (32, true),
        "s64" | "int64" => (64, true),
        _ => return None,
    })
}

/// Takes a format string apart.
fn pieces(format: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            text.push('%');
            continue;
        }
        pieces.push(Piece::Text(std::mem::take(&mut text)));
        pieces.push(Piece::Conversion(conversion(&mut chars)?));
    }
    pieces.push(Piece::Text(text));
    Some(pieces)
}

fn conversion(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Conversion> {
    let mut c = Conversion { bits: 32, ..Default::default() };
    while let Some(flag) = chars.next_if(|flag| "#0-+ ".contains(*flag)) {
        match flag {
            '#' => c.alternate = true,
            '0' => c.zero = true,
            '-' => c.left = true,
            '+' => c.plus = true,
            _ => c.space = true,
        }
    }
    c.width = size(chars)?;
    if chars.next_if_eq(&'.').is_some() {
        c.precision = match size(chars)? {
            Size::None => Size::Fixed(0),
            size => size,
        };
    }
    while let Some(length) = chars.next_if(|length| "hlLzjt".contains(*length)) {
        c.bits = match length {
            'h' => c.bits / 2,
            _ => 64,
        };
    }
    c.kind = chars.next().filter(|kind| "diuxXocsp".contains(*kind))?;
    if c.kind == 'p' {
        // `%pS`, `%pK`, `%ps` and others say how to print what an address points to.
        while chars.next_if(|more| more.is_ascii_alphanumeric()).is_some() {}
        c.bits = 64;
    }
    Some(c)
}

fn size(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Size> {
    if chars.next_if_eq(&'*').is_some() {
        return Some(Size::Argument);
    }
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Some(Size::None);
    }
    digits.parse().ok().filter(|width| *width <= WIDEST).map(Size::Fixed)
}
