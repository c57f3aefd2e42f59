//! The rules over the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::LazyLock;

use leasehold_tidy::files::{TextFile, paths, root, texts};
use leasehold_tidy::rules::{
    dependencies, determinism, documents, examples, licences, patches, settings, sources, words,
};
use leasehold_tidy::source::test_files;

struct Repository {
    paths: Vec<String>,
    files: Vec<TextFile>,
    for_tests: BTreeSet<String>,
}

static REPOSITORY: LazyLock<Repository> = LazyLock::new(|| {
    let paths = paths(&root()).expect("the folder can be listed");
    let files = texts(&root(), &paths).expect("the files can be read");
    let for_tests = test_files(&files);
    Repository { paths, files, for_tests }
});

impl Repository {
    fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| &file.text[..])
    }

    fn ending_with(&self, ending: &str) -> impl Iterator<Item = &TextFile> {
        self.files.iter().filter(move |file| file.path.ends_with(ending))
    }

    /// Rust files of programs and libraries, those of tests among them or not.
    fn sources(&self) -> impl Iterator<Item = &TextFile> {
        self.ending_with(".rs").filter(|file| format!("/{}", file.path).contains("/src/"))
    }

    fn is_for_tests(&self, file: &TextFile) -> bool {
        self.for_tests.contains(&file.path)
    }
}

#[track_caller]
fn none(findings: impl IntoIterator<Item = String>) {
    let findings = findings.into_iter().collect::<Vec<_>>();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn dependencies_point_down() {
    let manifests = REPOSITORY.ending_with("Cargo.toml").collect::<Vec<_>>();
    assert!(manifests.len() > 7, "only {} manifests were found", manifests.len());
    none(manifests.iter().flat_map(|file| dependencies::direction(&file.path, &file.text)));
}

#[test]
fn crates_that_decide_forbid_what_would_make_replicas_differ() {
    for name in dependencies::DECIDERS {
        let is_it = |file: &&TextFile| dependencies::package_name(&file.text) == Some(name);
        let manifest = REPOSITORY.ending_with("Cargo.toml").find(is_it).unwrap();
        let path = manifest.path.replace("Cargo.toml", "clippy.toml");
        none(determinism::lints(&path, REPOSITORY.text(&path)));
    }
}

#[test]
fn lints_of_a_crate_keep_those_of_the_root() {
    let root = REPOSITORY.text("clippy.toml").unwrap();
    let own = REPOSITORY.ending_with("/clippy.toml");
    none(own.flat_map(|file| determinism::keeps_the_root(&file.path, &file.text, root)));
}

#[test]
fn files_are_short() {
    let longest = |file: &TextFile| {
        let is_source = !REPOSITORY.is_for_tests(file) || file.path.contains("/src/");
        if is_source { sources::SOURCE_LINES_MAX } else { sources::TEST_LINES_MAX }
    };
    none(
        REPOSITORY.ending_with(".rs").flat_map(|file| sources::length(&file.path, &file.text, longest(file))),
    );
}

#[test]
fn functions_are_short() {
    let shipped = REPOSITORY.sources().filter(|file| !REPOSITORY.is_for_tests(file));
    none(shipped.flat_map(|file| sources::function_lengths(&file.path, &file.text)));
}

#[test]
fn files_open_with_their_idea() {
    none(REPOSITORY.sources().flat_map(|file| sources::opening(&file.path, &file.text)));
}

#[test]
fn code_does_not_panic_where_it_can_return() {
    let shipped = REPOSITORY.sources().filter(|file| !REPOSITORY.is_for_tests(file));
    none(shipped.flat_map(|file| sources::panics(&file.path, &file.text)));
}

#[test]
fn what_the_client_offers_is_shown_in_examples() {
    let of_client = |file: &&TextFile| file.path.starts_with("crates/client/src/");
    let shipped = REPOSITORY.sources().filter(|file| !REPOSITORY.is_for_tests(file)).filter(of_client);
    none(shipped.flat_map(|file| examples::missing(&file.path, &file.text)));
}

#[test]
fn no_work_is_left_in_marks() {
    none(
        REPOSITORY
            .files
            .iter()
            .filter(|file| !is_foreign(&file.path))
            .flat_map(|file| words::marks(&file.path, &file.text)),
    );
}

#[test]
fn no_file_names_a_registry_host() {
    none(
        REPOSITORY
            .files
            .iter()
            .filter(|file| !is_foreign(&file.path))
            .flat_map(|file| words::registry_hosts(&file.path, &file.text)),
    );
}

/// Written by others.
fn is_foreign(path: &str) -> bool {
    path == "LICENSE" || path.ends_with("Cargo.lock")
}

#[test]
fn every_reason_is_documented() {
    let proto = REPOSITORY.text("proto/leasehold/v1/leasehold.proto").unwrap();
    let document = REPOSITORY.text("docs/errors.md").unwrap_or_default();
    none(documents::reasons("docs/errors.md", document, proto));
}

#[test]
fn links_lead_somewhere() {
    let paths = REPOSITORY.paths.iter().map(String::as_str).collect::<BTreeSet<_>>();
    let headings =
        REPOSITORY.ending_with(".md").map(|file| (&file.path[..], documents::headings(&file.text)));
    let headings = headings.collect::<BTreeMap<_, _>>();
    let of = |path: &str| headings.get(path).cloned().unwrap_or_default();
    none(REPOSITORY.ending_with(".md").flat_map(|file| documents::links(&file.path, &file.text, &paths, of)));
}

#[test]
fn files_and_tests_that_documents_name_exist() {
    let text_of = |path: &str| {
        let is_binary = || REPOSITORY.paths.iter().any(|known| known == path).then_some("");
        REPOSITORY.text(path).or_else(is_binary)
    };
    none(REPOSITORY.ending_with(".md").flat_map(|file| documents::names(&file.path, &file.text, text_of)));
}

#[test]
fn the_architecture_is_read_in_one_sitting() {
    if let Some(text) = REPOSITORY.text("ARCHITECTURE.md") {
        none(sources::length("ARCHITECTURE.md", text, documents::ARCHITECTURE_LINES_MAX));
    }
}

#[test]
fn variables_that_are_installed_are_settings() {
    let known = settings::known(REPOSITORY.text("crates/node/src/config/keys.rs").unwrap());
    assert!(known.len() > 10, "{known:?}");
    let deployed = REPOSITORY.files.iter().filter(|file| file.path.starts_with("deploy/"));
    none(deployed.flat_map(|file| settings::of_environment(&file.path, &file.text, &known)));
}

#[test]
fn every_dependency_has_a_licence_of_the_list() {
    let run = |program: String, arguments: &[&str]| {
        let output = Command::new(&program).args(arguments).current_dir(root()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{program} {}: {errors}\nrun `cargo fetch` first",
            arguments.join(" ")
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let version = run(std::env::var("RUSTC").unwrap_or("rustc".to_owned()), &["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    // What other platforms would need was not downloaded by this build.
    let arguments = ["metadata", "--offline", "--format-version", "1", "--filter-platform", host];
    none(licences::packages(&run(env!("CARGO").to_owned(), &arguments)));
}

#[test]
fn there_is_one_list_of_licences() {
    none(licences::list_of_deny("deny.toml", REPOSITORY.text("deny.toml").unwrap_or_default()));
}

/// They are applied by a command that takes minutes, so what makes them useless shows here.
#[test]
fn patches_that_break_a_rule_fit_the_code() {
    let patches = REPOSITORY.ending_with(".patch").collect::<Vec<_>>();
    assert!(patches.len() > 3, "only {} patches were found", patches.len());
    let text = |path: &str| REPOSITORY.text(path);
    none(patches.iter().flat_map(|patch| patches::fit(&patch.path, &patch.text, text)));
}
