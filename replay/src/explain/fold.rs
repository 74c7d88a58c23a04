//! Lines that come again and again, told once.

/// Lines that repeat as one block are no longer.
const LONGEST: usize = 16;
/// Repetitions that are still told.
const TOLD: usize = 2;

/// Leaves of each block of lines that follows itself more than a few times the first one, and says how often it comes.
pub fn repeats(lines: Vec<String>) -> Vec<String> {
    let mut folded = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let blocks = (1..=LONGEST).map(|length| (length, times(&lines[at..], length)));
        match blocks.into_iter().find(|(_, times)| *times > TOLD) {
            Some((length, times)) => {
                folded.extend_from_slice(&lines[at..at + length]);
                folded.push(format!("(and so {} times more)", times - 1));
                at += length * times;
            }
            None => {
                folded.push(lines[at].clone());
                at += 1;
            }
        }
    }
    folded
}

/// How often the first lines stand one behind the other.
fn times(lines: &[String], length: usize) -> usize {
    lines.chunks_exact(length).take_while(|block| *block == &lines[..length]).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(lines: &str) -> String {
        repeats(lines.split(' ').map(str::to_owned).collect()).join(" ")
    }

    #[test]
    fn what_repeats_is_told_once() {
        assert_eq!(folded("a b a b"), "a b a b");
        assert_eq!(folded("x a a a a y"), "x a (and so 3 times more) y");
        assert_eq!(folded("x a b a b a b a c"), "x a b (and so 2 times more) a c");
        assert_eq!(folded("a"), "a");
    }
}
