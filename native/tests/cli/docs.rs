//! The documents: the commands run or at least exist, the memory table matches the planner, links point to files.

use std::fs;
use std::path::{Path, PathBuf};

use mgm::memory_plan::MemoryPlan;
use mgm::tensor::Precision;
use mgm::variants;

const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::F16, Precision::Q8, Precision::Q4];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README.md, the other documents with commands, and docs/*.md, as paths relative to the repository.
fn documents() -> Vec<PathBuf> {
    let listed = fs::read_dir(root().join("docs")).expect("docs/");
    let mut documents: Vec<_> =
        listed.map(|entry| Path::new("docs").join(entry.expect("an entry").file_name())).collect();
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    let others = [
        "README.md",
        "CONTRIBUTING.md",
        "KERNELS.md",
        "native/README.md",
        "pocket/MODEL_CARD.md",
        "pocket/README.md",
        "tests/reference/README.md",
        "web/README.md",
        "web/examples/README.md",
    ];
    others.into_iter().map(PathBuf::from).chain(documents).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A fenced code block.
struct Block {
    /// Line of the opening fence, from 1.
    line: usize,
    language: String,
    text: String,
    /// The reason in `<!-- not run: reason -->` on the line before the block.
    not_run: Option<String>,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut previous = "";
    for (index, line) in document.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let reason = previous.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
                let (language, not_run) = (language.to_owned(), reason.map(str::to_owned));
                open = Some(Block { line: index + 1, language, text: String::new(), not_run });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
        previous = line;
    }
    assert!(open.is_none(), "a code block without an end");
    blocks
}

/// Every `sh` block runs in a copy of the repository's layout, with Pocket as the default model.
#[cfg(unix)]
#[test]
fn commands_run() {
    use std::process::{Command, Stdio};

    let binary = Path::new(env!("CARGO_BIN_EXE_mgm")).parent().expect("a folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let (mut run, mut failures) = (0, String::new());
    for document in documents() {
        let folder = tempfile::TempDir::new().expect("a temporary folder");
        for name in ["docs", "models", "pocket", "tests"] {
            let target = root().join(name).canonicalize().expect("a folder of the repository");
            std::os::unix::fs::symlink(target, folder.path().join(name)).expect("a link");
        }
        for block in blocks(&read(&document)).iter().filter(|block| block.language == "sh") {
            let place = format!("{}:{}", document.display(), block.line);
            if let Some(reason) = &block.not_run {
                println!("{place}: not run: {reason}");
                continue;
            }
            run += 1;
            let output = Command::new("sh")
                .args(["-eu", "-c", &block.text])
                .current_dir(folder.path())
                .env("PATH", &path)
                .env("XDG_CACHE_HOME", folder.path().join("cache"))
                .env_remove("MGM_MODELS")
                .stdin(Stdio::null())
                .output()
                .expect("sh runs");
            if !output.status.success() {
                let error = String::from_utf8_lossy(&output.stderr);
                failures += &format!("{place}: {}\n{}{error}\n", output.status, block.text);
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(run > 0, "no document has a command that runs");
}

/// Commands that are not in a fenced block would not be tested.
#[test]
fn commands_are_fenced() {
    const PROGRAMS: [&str; 9] = ["cargo", "cd", "make", "mgm", "node", "npm", "npx", "pip", "python"];
    for document in documents() {
        for (index, line) in read(&document).lines().enumerate() {
            let program = line.strip_prefix("    ").and_then(|line| line.split(' ').next()).unwrap_or_default();
            let indented = PROGRAMS.contains(&program.trim_end_matches(char::is_numeric));
            assert!(!indented, "{}:{}: use a block ```sh", document.display(), index + 1);
        }
    }
}

/// The commands of a block, as words: lines are joined and split at `&&`, `|` and `;`, and comments are removed.
fn commands(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.split(" #").next().unwrap_or(line));
    let commands = lines.flat_map(|line| line.split(['|', ';', '(', ')'])).flat_map(|part| part.split("&&"));
    let words = commands.map(|command| command.split_whitespace().map(str::to_owned).collect());
    words.filter(|words: &Vec<_>| !words.is_empty()).collect()
}

/// What commands that cannot run here name exists: `mgm`'s subcommands and options, targets of `make`, Python modules
/// and scripts.
#[test]
fn commands_name_what_exists() {
    let makefile = read(Path::new("Makefile"));
    let mut help = std::collections::BTreeMap::new();
    let (mut checked, mut failures) = (0, String::new());
    for document in documents() {
        for block in blocks(&read(&document)).iter().filter(|block| block.language == "sh") {
            let mut folder = root();
            for words in commands(&block.text) {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let missing = match &words[..] {
                    ["cd", name] => {
                        folder.push(name);
                        None
                    }
                    ["mgm", command, options @ ..] => {
                        let help = help.entry((*command).to_owned()).or_insert_with(|| help_of(command));
                        let known = |option: &str| help.split([' ', ',', '\n', '=']).any(|word| word == option);
                        let options = options.iter().filter(|option| option.starts_with("--"));
                        let mut names = options.filter_map(|option| option.split('=').next());
                        names.find(|name| !known(name)).map(|name| format!("mgm {command} has no option {name}"))
                    }
                    ["make", targets @ ..] => {
                        let defined = |target: &str| makefile.contains(&format!("\n{target}:"));
                        let mut targets = targets.iter().filter(|word| !word.contains('='));
                        targets.find(|target| !defined(target)).map(|target| format!("make has no target {target}"))
                    }
                    [python, "-m", module, ..] | [_, _, _, python, "-m", module, ..]
                        if python.starts_with("python") && module.starts_with("pocket") =>
                    {
                        let path = root().join(module.replace('.', "/"));
                        let exists = path.with_extension("py").is_file() || path.join("__main__.py").is_file();
                        (!exists).then(|| format!("no module {module}"))
                    }
                    [program, script, ..] if script.ends_with(".py") && program.contains("python") => {
                        (!folder.join(script).is_file()).then(|| format!("no file {script}"))
                    }
                    _ => continue,
                };
                checked += 1;
                if let Some(missing) = missing {
                    failures += &format!("{}:{}: {missing}\n", document.display(), block.line);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(checked > 40, "only {checked} commands");
}

fn help_of(command: &str) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mgm")).args([command, "--help"]).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "mgm has no command {command}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn memory_table_matches_the_planner() {
    const START: &str = "<!-- memory table";
    let readme = read(Path::new("README.md"));
    let found: Vec<_> = readme.lines().skip_while(|line| !line.starts_with(START)).skip(1).collect();
    let found: Vec<_> = found.into_iter().take_while(|line| line.starts_with('|')).collect();
    let expected = memory_table();
    assert!(found == expected, "README.md should have this table:\n\n{}\n", expected.join("\n"));
}

fn memory_table() -> Vec<String> {
    let gib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 30));
    let row = |name: &str, model: &str, sizes: &[String], cache: &str| {
        format!("| {name} | {model} | {} | {cache} |", sizes.join(" | "))
    };
    let mut table = vec![
        "| model | language model | f32 | f16 | q8 | q4 | cache |".to_owned(),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |".to_owned(),
    ];
    let models = [
        ("MGM-2B", "Gemma 2B"),
        ("MGM-7B", "Vicuna 7B"),
        ("MGM-8B", "Llama 3 8B"),
        ("MGM-13B", "Vicuna 13B"),
        ("MGM-34B", "Yi 34B"),
        ("MGM-8x7B", "Mixtral 8x7B"),
    ];
    for (name, model) in models {
        let variant = variants::released(name).expect("a released model");
        let plan = |precision| MemoryPlan::new(&variant.language, Some(&variant.vision), precision);
        let sizes = PRECISIONS.map(|precision| gib(plan(precision).weights()));
        // KiB per token are MiB per 1,024 tokens.
        let cache = plan(Precision::F16).cache_per_position >> 10;
        table.push(row(name, model, &sizes, &format!("{cache} MiB")));
    }
    let mut sizes = PRECISIONS.map(|precision| gib(MemoryPlan::for_released_diffusion(precision).weights()));
    // Image models are not quantised to q4.
    sizes[3] = "–".to_owned();
    table.push(row("Stable Diffusion XL", "–", &sizes, "–"));
    table
}

#[test]
fn predictions_match_the_model() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mgm")).args(["bench", "--predict", "all"]).output();
    let tables = String::from_utf8(output.expect("the binary runs").stdout).expect("UTF-8");
    let document = read(Path::new("docs/gpu-model.md"));
    let has = |line: &str| document.lines().any(|other| other == line);
    let complete = tables.lines().count() > 20 && tables.lines().all(has);
    assert!(complete, "docs/gpu-model.md should have the tables of `mgm bench --predict all`:\n\n{tables}");
}

/// The HD variants' weights are as large as those of their twins, as README says.
#[test]
fn hd_variants_need_the_same() {
    let bytes = |name: &str| {
        let variant = variants::released(name).expect("a released model");
        MemoryPlan::new(&variant.language, Some(&variant.vision), Precision::F16).weights()
    };
    for name in variants::NAMES.iter().filter(|name| name.ends_with("-hd")) {
        assert_eq!(bytes(name), bytes(name.trim_end_matches("-hd")), "{name}");
    }
}

#[test]
fn links_point_to_files() {
    let others = ["ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"].map(PathBuf::from);
    for document in documents().into_iter().chain(others) {
        let text = read(&document);
        let folder = document.parent().unwrap_or(Path::new(""));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            // Addresses, headings of the same file, and pages of the hosting site.
            if target.is_empty() || target.contains("://") || target.starts_with("../../actions") {
                continue;
            }
            let path = root().join(folder).join(target);
            assert!(path.exists(), "{}: a link to {target}", document.display());
        }
    }
}

/// README's Rust function is an example, which cargo compiles with the tests and `make examples` runs.
/// web/tests/package.test.mjs type-checks the TypeScript.
#[test]
fn the_program_is_an_example() {
    let example = read(Path::new("examples/readme.rs"));
    let readme = blocks(&read(Path::new("README.md")));
    let programs: Vec<_> = readme.iter().filter(|block| block.language == "rust").collect();
    let [program] = programs[..] else { panic!("README.md has {} Rust blocks", programs.len()) };
    assert!(example.contains(&program.text), "examples/readme.rs lacks the code of README.md");
    for block in readme.iter().filter(|block| ["rust", "ts"].contains(&block.language.as_str())) {
        let lines = block.text.lines().count();
        assert!(lines <= 8, "README.md:{}: {lines} lines; eight are enough to show the API", block.line);
    }
    assert!(read(Path::new("README.md")).lines().count() <= 120, "README.md has more than 120 lines");
}

/// One version, and one repository address: `scripts/set-repository.py` replaces it.
#[test]
fn metadata_agrees() {
    let (version, repository) = (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_REPOSITORY"));
    let citation = read(Path::new("CITATION.cff"));
    for line in
        [format!("version: {version}"), format!("url: \"{repository}\""), format!("repository-code: \"{repository}\"")]
    {
        assert!(citation.lines().any(|found| found == line), "CITATION.cff lacks {line}");
    }
    let package: serde_json::Value = serde_json::from_str(&read(Path::new("web/package.json"))).expect("JSON");
    assert_eq!(package["version"], version);
    assert_eq!(package["repository"]["url"], format!("git+{repository}.git"));
    assert_eq!(package["bugs"], format!("{repository}/issues"));
}
