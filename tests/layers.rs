//! The map in `src/lib.rs` is true: a file uses what stands on its own floor or a lower one, and no files import each other
//! in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

type Imports = BTreeMap<String, BTreeSet<String>>;

/// The floor of each entry of `src`, from the table in `src/lib.rs`.
fn floors(lib: &str) -> BTreeMap<String, u32> {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | ")).filter_map(|row| row.split_once(" | "));
    let mut floors = BTreeMap::new();
    for (floor, names) in rows.filter(|(floor, _)| floor.starts_with(|first: char| first.is_ascii_digit())) {
        let floor = floor.split(' ').next().unwrap().parse().unwrap();
        floors.extend(names.split('`').skip(1).step_by(2).map(|name| (name.to_owned(), floor)));
    }
    floors
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// Each module that is a file, and what it says without its tests and comments.
fn modules(source: &Path) -> BTreeMap<String, String> {
    let files = sources(source).into_iter().filter(|path| !path.ends_with("tests.rs"));
    let module = |path: &Path| {
        let path = path.strip_prefix(source).unwrap().with_extension("");
        let path = path.to_str().unwrap();
        path.strip_suffix("/mod").unwrap_or(path).to_owned()
    };
    let text = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines = code.lines().map(|line| line.split("//").next().unwrap());
        lines.collect::<Vec<_>>().join("\n")
    };
    files.map(|path| (module(&path), text(&path))).collect()
}

/// What `use` trees and paths that begin with `crate::` or `super::` lead to.
fn imports(modules: &BTreeMap<String, String>) -> Imports {
    let mut imports = Imports::new();
    for (module, text) in modules {
        let parent = module.rsplit_once('/').map_or("", |(parent, _)| parent);
        let mut found = BTreeSet::new();
        for (root, at) in
            ["crate::", "super::"].into_iter().flat_map(|root| text.match_indices(root).map(move |(at, _)| (root, at)))
        {
            let from = if root == "crate::" { "" } else { parent };
            leaves(&text[at + root.len()..], &mut |path| {
                let whole = [from, &path.join("/")].join("/");
                let mut path = whole.trim_matches('/');
                while !modules.contains_key(path) {
                    let Some((shorter, _)) = path.rsplit_once('/') else { return };
                    path = shorter;
                }
                if path != module {
                    found.insert(path.to_owned());
                }
            });
        }
        imports.insert(module.clone(), found);
    }
    imports
}

/// Calls `found` with each path of the tree that `text` begins with. Returns what is behind it.
fn leaves<'t>(text: &'t str, found: &mut dyn FnMut(&[&str])) -> &'t str {
    fn walk<'t>(mut text: &'t str, path: &mut Vec<&'t str>, found: &mut dyn FnMut(&[&str])) -> &'t str {
        let depth = path.len();
        loop {
            text = text.trim_start();
            if let Some(inner) = text.strip_prefix('{') {
                text = inner;
                loop {
                    text = walk(text, path, found).trim_start();
                    match text.strip_prefix(',') {
                        Some(rest) => text = rest,
                        None => break,
                    }
                }
                text = text.strip_prefix('}').unwrap_or(text);
                break;
            }
            let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
            path.push(&text[..end]);
            text = &text[end..];
            let Some(rest) = text.strip_prefix("::") else {
                found(path);
                // Another name for it: ` as name`.
                let renamed = text.strip_prefix(" as ").unwrap_or(text);
                text = renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                break;
            };
            text = rest;
        }
        path.truncate(depth);
        text
    }
    walk(text, &mut Vec::new(), found)
}

/// A path from `module` back to itself.
fn circle(imports: &Imports, module: &str) -> Option<Vec<String>> {
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = vec![module];
    while let Some(next) = open.pop() {
        for target in imports.get(next).into_iter().flatten() {
            if target == module {
                let mut path = vec![module.to_owned()];
                let mut at = next;
                while at != module {
                    path.push(at.to_owned());
                    at = from[at];
                }
                return Some(path);
            }
            if !from.contains_key(target.as_str()) {
                from.insert(target, next);
                open.push(target);
            }
        }
    }
    None
}

#[test]
fn imports_lead_down_and_never_in_a_circle() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules = modules(&source);
    let floors = floors(&fs::read_to_string(source.join("lib.rs")).unwrap());
    let floor = |module: &str| {
        let entry = module.split('/').next().unwrap();
        *floors.get(entry).unwrap_or_else(|| panic!("{entry} is not in the table of src/lib.rs"))
    };
    let imports = imports(&modules);
    let up: Vec<_> = imports
        .iter()
        .filter(|(module, _)| *module != "main")
        .flat_map(|(module, targets)| targets.iter().map(move |target| (module, target)))
        .filter(|(module, target)| *target != "lib" && floor(module) < floor(target))
        .collect();
    assert!(up.is_empty(), "{up:#?}");
    let circles: BTreeSet<_> = imports.keys().filter_map(|module| circle(&imports, module)).collect();
    assert!(circles.is_empty(), "{circles:#?}");
    // The reader of imports sees something.
    assert!(imports["proxy"].contains("upstream") && imports["downstream/http1"].contains("proxy/response"));
    assert!(modules.len() > 80 && imports.values().map(BTreeSet::len).sum::<usize>() > 300);
}

#[test]
fn trees_of_imports_are_read_whole() {
    let mut paths = Vec::new();
    let text = "a::{self, B, c::{D, e}, f as g};\nfn x";
    let rest = leaves(text, &mut |path| paths.push(path.join("::")));
    assert_eq!(paths, ["a::self", "a::B", "a::c::D", "a::c::e", "a::f"]);
    assert!(rest.starts_with(';'), "{rest}");
}

#[test]
fn a_circle_is_found() {
    let import = |from: &str, to: &[&str]| (from.to_owned(), to.iter().map(|to| (*to).to_owned()).collect());
    let imports = Imports::from([import("a", &["b"]), import("b", &["c", "d"]), import("c", &["a"]), import("d", &[])]);
    assert_eq!(circle(&imports, "a").unwrap(), ["a", "c", "b"]);
    assert_eq!(circle(&imports, "d"), None);
}
