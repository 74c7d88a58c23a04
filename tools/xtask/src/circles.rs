//! Files of a crate that import each other in a circle: whoever reads one of them has to read all.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// A crate's files by the paths of their modules; the root's is empty.
#[derive(Default)]
pub struct Crate {
    files: BTreeMap<Vec<String>, File>,
}

/// What one file imports and passes on.
#[derive(Default)]
struct File {
    uses: Vec<Vec<String>>,
    /// Names that `pub use` gives to others: the name, and where it is.
    exports: Vec<(String, Vec<String>)>,
}

impl Crate {
    /// Takes a file, by its path below the crate's `src`.
    pub fn add(&mut self, path: &Path, text: &str) {
        let mut module: Vec<String> =
            path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        let file = File::parse(&module, text);
        self.files.insert(module, file);
    }

    /// Each circle as the modules in it.
    pub fn circles(&self) -> Vec<String> {
        let modules: Vec<&Vec<String>> = self.files.keys().collect();
        let reach: Vec<BTreeSet<usize>> = modules.iter().map(|from| self.reachable(&modules, from)).collect();
        let mut found = BTreeSet::new();
        for (n, reached) in reach.iter().enumerate().filter(|(n, reached)| reached.contains(n)) {
            let circle = reached.iter().filter(|other| reach[**other].contains(&n));
            found.insert(circle.map(|other| name(modules[*other])).collect::<Vec<_>>());
        }
        found.into_iter().map(|circle| circle.join(", ")).collect()
    }

    fn reachable(&self, modules: &[&Vec<String>], from: &[String]) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut pending = vec![from.to_vec()];
        while let Some(module) = pending.pop() {
            for target in self.files[&module].uses.iter().map(|used| self.home(used, 0)) {
                if let Ok(n) = modules.binary_search(&&target)
                    && target != module
                    && found.insert(n)
                {
                    pending.push(target);
                }
            }
        }
        found
    }

    /// The module whose file has what a path names, through what the modules on its way pass on.
    fn home(&self, path: &[String], depth: usize) -> Vec<String> {
        const DEEPEST: usize = 8;
        let known = (0..=path.len()).rev().find(|len| self.files.contains_key(&path[..*len])).unwrap_or(0);
        let (module, rest) = path.split_at(known);
        let exported = rest.first().and_then(|name| {
            let mut exports = self.files.get(module)?.exports.iter();
            exports.find(|(exported, _)| exported == name).map(|(_, target)| target)
        });
        match exported {
            Some(target) if depth < DEEPEST => self.home(&[target, &rest[1..]].concat(), depth + 1),
            _ => module.to_vec(),
        }
    }
}

fn name(module: &[String]) -> String {
    if module.is_empty() { "the root".to_owned() } else { module.join("::") }
}

impl File {
    fn parse(module: &[String], text: &str) -> Self {
        let mut file = Self::default();
        // Tests may look at everything.
        let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        let code = &text[..tests];
        let mut children = BTreeSet::new();
        for line in code.lines().filter(|line| !line.starts_with([' ', '/'])) {
            if let Some((_, child)) = line.split_once("mod ").filter(|_| line.ends_with(';')) {
                children.insert(child.trim_end_matches(';').to_owned());
            }
        }
        for item in code.split("\n").scan(String::new(), statement).flatten() {
            let Some((public, tree)) = import(&item) else { continue };
            for leaf in leaves(tree) {
                let Some(path) = absolute(module, &children, &leaf) else { continue };
                if let Some(name) = path.last().filter(|_| public) {
                    file.exports.push((name.clone(), path.clone()));
                }
                // A parent may pass on what its parts have.
                if !public || !leaf.first().is_some_and(|first| children.contains(first)) {
                    file.uses.push(path);
                }
            }
        }
        file
    }
}

/// Joins the lines of a `use` item.
fn statement(open: &mut String, line: &str) -> Option<Option<String>> {
    let begins = import(line).is_some();
    if begins || !open.is_empty() {
        open.push_str(line.trim());
    }
    let done = open.ends_with(';');
    Some(done.then(|| std::mem::take(open)))
}

/// Whether a `use` item passes on what it imports, and its tree.
fn import(item: &str) -> Option<(bool, &str)> {
    let rest =
        item.strip_prefix("pub(crate) ").or(item.strip_prefix("pub(super) ")).or(item.strip_prefix("pub "));
    let tree = rest.unwrap_or(item).strip_prefix("use ")?;
    Some((rest.is_some(), tree.trim_end_matches(';')))
}

/// The paths that a tree such as `a::{b, c::{d, e}}` stands for.
fn leaves(tree: &str) -> Vec<Vec<String>> {
    let Some((head, braced)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let head: Vec<String> =
        head.split("::").map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned).collect();
    let braced = braced.strip_suffix('}').unwrap_or(braced);
    let mut found = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in braced.char_indices().chain([(braced.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = braced[start..at].trim();
                if !part.is_empty() {
                    found.extend(leaves(part).into_iter().map(|leaf| [head.clone(), leaf].concat()));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// The path from the crate's root, of one that lies in this crate. `*` and `self` stand for the module before them.
fn absolute(module: &[String], children: &BTreeSet<String>, path: &[String]) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    let mut found = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.to_vec(),
        "super" => module[..module.len().saturating_sub(1)].to_vec(),
        child if children.contains(child) => [module, &[child.to_owned()]].concat(),
        _ => return None,
    };
    for part in rest {
        match part.as_str() {
            "super" => _ = found.pop(),
            "self" | "*" => {}
            name => found.push(name.to_owned()),
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let mut krate = Crate::default();
        files.iter().for_each(|(path, text)| krate.add(Path::new(path), text));
        krate.circles()
    }

    #[test]
    fn a_circle_of_two_files_and_of_three() {
        assert_eq!(circles(&[("a.rs", "use crate::b::B;\n"), ("b.rs", "use crate::{a::A, c};\n")]), ["a, b"]);
        let three = [
            ("x/mod.rs", "mod a;\nmod b;\nuse a::{\n    A,\n    other,\n};\n"),
            ("x/a.rs", "use super::b::B;\n"),
            ("x/b.rs", "use super::*;\n"),
        ];
        assert_eq!(circles(&three), ["x, x::a, x::b"]);
    }

    #[test]
    fn what_is_passed_on_counts_where_it_is() {
        let facade = ("x/mod.rs", "mod a;\nmod b;\npub use a::A;\npub(crate) use b::B;\n");
        assert!(circles(&[facade, ("x/a.rs", "use crate::x::B;\n"), ("x/b.rs", "")]).is_empty());
        let both = [facade, ("x/a.rs", "use crate::x::B;\n"), ("x/b.rs", "use super::A;\n")];
        assert_eq!(circles(&both), ["x::a, x::b"]);
    }

    #[test]
    fn tests_may_look_at_everything_and_a_parent_may_name_its_parts() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\npub use a::A;\n"),
            ("a.rs", "use crate::b::B;\n"),
            ("b.rs", "fn f() {}\n"),
        ];
        assert!(circles(&files).is_empty());
        let test = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n";
        assert!(circles(&[files[0], files[1], ("b.rs", test)]).is_empty());
    }
}
