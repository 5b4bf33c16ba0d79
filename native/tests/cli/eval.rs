//! `mgm eval`: benchmark formats, scores of given answers, the model's own answers, resuming, and bad input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{expected, goldens, text};

/// A temporary folder with files.
struct Data(TempDir);

impl Data {
    fn new(files: &[(&str, &str)]) -> Self {
        let data = Self(TempDir::new().expect("a temporary folder"));
        for (name, text) in files {
            data.write(name, text);
        }
        data
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let file = self.file(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, text).expect("a file");
    }
}

fn eval(format: &str, data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.args(["eval", "--format", format, "--data"]).arg(data).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// The JSON report of a run that must succeed.
fn report(command: &mut Command) -> Value {
    let (code, out, errors) = run(command.arg("--json"));
    assert_eq!(code, Some(0), "{errors}");
    serde_json::from_str(&out).expect("one JSON object and nothing else")
}

/// Scores answers (id, text, prompt). A prompt, if given, must match the question's.
fn scored(mut command: Command, answers: &[(&str, &str, Option<&str>)]) -> Value {
    let lines: String = answers
        .iter()
        .map(|(id, text, prompt)| match prompt {
            Some(prompt) => json!({"id": id, "text": text, "prompt": prompt}).to_string() + "\n",
            None => json!({"question_id": id, "answer": text}).to_string() + "\n",
        })
        .collect();
    let data = Data::new(&[("answers.jsonl", &lines)]);
    report(command.arg("--answers").arg(data.file("answers.jsonl")))
}

fn figures(report: &Value) -> (f64, u64, u64) {
    let count = |key: &str| report[key].as_u64().expect("a count");
    (report["accuracy"].as_f64().expect("an accuracy"), count("questions"), count("not_understood"))
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
}

#[test]
fn easy_vqa_scores_words() {
    let rows = r#"[["what is the red shape?", "circle", 0], ["is there a circle?", "yes", 0],
        ["what color is the shape?", "red", 1], ["is there no circle?", "no", 1]]"#;
    let data = Data::new(&[("data/test/questions.json", rows), ("data/answers.txt", "circle\nyes\nred\nno")]);
    let short = |question: &str| format!("{question}\nAnswer the question using a single word or phrase.");
    let answers = [
        ("0", "Circle.", Some(short("what is the red shape?"))),
        ("1", "no", Some(short("is there a circle?"))),
        ("2", "a red one", Some(short("what color is the shape?"))),
        ("3", "No", Some(short("is there no circle?"))),
    ];
    let answers: Vec<_> = answers.iter().map(|(id, text, prompt)| (*id, *text, prompt.as_deref())).collect();
    // The package's folder stands for its test split.
    for folder in ["data", "data/test"] {
        let report = scored(eval("easy-vqa", &data.file(folder)), &answers);
        assert_eq!(figures(&report), (0.5, 4, 1));
        let kinds = report["kinds"].as_array().expect("kinds");
        let kinds: Vec<_> = kinds.iter().map(|kind| (text(&kind["kind"]), kind["accuracy"].as_f64())).collect();
        assert_eq!(kinds, [("shape", Some(1.0)), ("yes/no", Some(0.5)), ("color", Some(0.0))]);
        // statsmodels: proportion_confint(2, 4, method="wilson").
        close(report["interval"][0].as_f64().expect("a bound"), 0.150_038_989_152_149_54);
        close(report["interval"][1].as_f64().expect("a bound"), 0.849_961_010_847_850_4);
    }
    let mut without = eval("easy-vqa", &data.file("data"));
    without.args(["--instruction", ""]);
    assert_eq!(figures(&scored(without, &[("1", "yes", Some("is there a circle?"))])), (1.0, 1, 0));
}

#[test]
fn own_questions_can_have_several_answers_kinds_and_history() {
    let rows = r#"{"image": "a.png", "question": "How many?", "answers": ["2", "two cats"], "kind": "count"}

{"question": "Who are you?", "answer": "Pocket.", "kind": "talk", "id": "who"}
{"image": "a.png", "question": "And where?", "answer": "on the left", "id": 7, "history": [{"question": "A cat?", "answer": "yes"}]}
"#;
    let data = Data::new(&[("q.jsonl", rows)]);
    let answers = [("1", "The two", Some("How many?")), ("who", "pocket", None), ("7", "below", None)];
    let report = scored(eval("jsonl", &data.file("q.jsonl")), &answers);
    assert_eq!(figures(&report), (2.0 / 3.0, 3, 0));
    assert_eq!(report["kinds"].as_array().map(Vec::len), Some(2));
    let mut some = eval("jsonl", &data.file("q.jsonl"));
    some.args(["--limit", "2"]);
    let report = scored(some, &answers);
    assert_eq!((&report["asked"], &report["answered"], figures(&report).1), (&json!(2), &json!(2), 2));
}

#[test]
fn vqa_and_text_vqa_score_agreement() {
    // By definition, each annotator's score is min(1, number of others with the answer / 3). If two of ten gave the
    // answer, each of the two has one other, 1/3, and each of the other eight has two, 2/3: (2 / 3 + 8 * 2 / 3) / 10.
    let answers = |counts: &[(&str, usize)]| -> Vec<String> {
        counts.iter().flat_map(|(text, count)| std::iter::repeat_n((*text).to_owned(), *count)).collect()
    };
    let two = (2.0 / 3.0 + 16.0 / 3.0) / 10.0;
    let questions = json!({"data_subtype": "val2014", "questions": [
        {"image_id": 42, "question": "What is it?", "question_id": 42000},
        {"image_id": 42, "question": "Is it?", "question_id": 42001}]});
    let annotated = |id: u64, kind: &str, texts: Vec<String>| {
        let answers: Vec<Value> =
            texts.iter().enumerate().map(|(index, text)| json!({"answer": text, "answer_id": index + 1})).collect();
        json!({"question_id": id, "image_id": 42, "question_type": "what", "answer_type": kind, "answers": answers})
    };
    let annotations = json!({"annotations": [
        annotated(42001, "yes/no", answers(&[("yes", 10)])),
        annotated(42000, "other", answers(&[("cat", 8), ("2 dogs", 2)]))]});
    let data = Data::new(&[("q.json", &questions.to_string()), ("a.json", &annotations.to_string())]);
    let command = || {
        let mut command = eval("vqa", &data.file("q.json"));
        command.arg("--annotations").arg(data.file("a.json"));
        command
    };
    let prompt = "What is it?\nAnswer the question using a single word or phrase.";
    let report = scored(command(), &[("42000", "Two dogs.", Some(prompt)), ("42001", "Yes", None)]);
    close(figures(&report).0, (1.0 + two) / 2.0);
    assert_eq!(report["kinds"][0]["kind"], "other");

    let text_vqa = json!({"data": [{"question_id": 5, "image_id": "ab", "question": "What does it SAY?",
        "answers": answers(&[("stop", 8), ("stop sign", 2)])}]});
    let row = json!({"question_id": "ab", "image": "ab.jpg", "category": "default", "text":
        "what does it say?\nReference OCR token: STOP, X\nAnswer the question using a single word or phrase."});
    let data = Data::new(&[("t.json", &text_vqa.to_string()), ("q.jsonl", &row.to_string())]);
    let alone = eval("textvqa", &data.file("t.json"));
    let prompt = "What does it SAY?\nAnswer the question using a single word or phrase.";
    close(figures(&scored(alone, &[("5", "Stop sign", Some(prompt))])).0, two);
    let mut with_words = eval("textvqa", &data.file("q.jsonl"));
    with_words.arg("--annotations").arg(data.file("t.json"));
    close(figures(&scored(with_words, &[("5", "stop!", Some(text(&row["text"])))])).0, 1.0);
}

#[test]
fn pope_reports_figures_by_category() {
    let rows = |labels: [&str; 4]| -> String {
        let row = |(index, label): (usize, &&str)| {
            json!({"question_id": index + 1, "image": "x.jpg", "text": "Is there a dog?", "label": label}).to_string()
        };
        labels.iter().enumerate().map(row).collect::<Vec<_>>().join("\n")
    };
    let data = Data::new(&[
        ("pope/coco_pope_random.json", &rows(["yes", "yes", "no", "no"])),
        ("pope/coco_pope_popular.json", &rows(["yes", "no", "no", "no"])),
    ]);
    let answers = [
        ("random/1", "Yes"),
        ("random/2", "No, there is none"),
        ("random/3", "Yes, there is."),
        ("random/4", "There is not one."),
        ("popular/1", "yes"),
        ("popular/2", "no"),
        ("popular/3", "no"),
        ("popular/4", "A cat"),
    ];
    let answers: Vec<_> = answers.iter().map(|(id, text)| (*id, *text, None)).collect();
    let report = scored(eval("pope", &data.file("pope")), &answers);
    assert_eq!(figures(&report), (5.0 / 8.0, 8, 1));
    // In total, 4 answers are yes, 2 of them correctly; 3 should be.
    let yes_no = |figures: &Value, key: &str| figures["yes_no"][key].as_f64().expect("a figure");
    for (key, expected) in [("precision", 0.5), ("recall", 2.0 / 3.0), ("f1", 4.0 / 7.0), ("yes_ratio", 0.5)] {
        close(yes_no(&report, key), expected);
    }
    let random = report["kinds"].as_array().expect("kinds").iter().find(|kind| kind["kind"] == "random").expect("it");
    for key in ["precision", "recall", "f1", "yes_ratio"] {
        close(yes_no(random, key), 0.5);
    }
    // A single file keeps its ids.
    let report = scored(eval("pope", &data.file("pope/coco_pope_random.json")), &[("1", "Yes", None)]);
    assert_eq!(figures(&report), (1.0, 1, 0));
}

#[test]
fn mmbench_scores_letters() {
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n";
    let image = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let rows = format!(
        "{header}1\tWhich?\t\"A hint\nof two lines\"\tred\tblue\t\t\tB\tcolour\t{image}\n2\tWhat?\tnan\tx\ty\tz\tw\tA\tshape\t1\n\
         3\tHidden?\t\tx\ty\t\t\t\tshape\t{image}\n"
    );
    let data = Data::new(&[("m.tsv", &rows)]);
    let prompt = "A hint\nof two lines\nWhich?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly.";
    let answers = [("1", "B.", Some(prompt)), ("2", "(C)", None), ("3", "A", None)];
    let report = scored(eval("mmbench", &data.file("m.tsv")), &answers);
    assert_eq!(figures(&report), (0.5, 2, 0));
    assert_eq!((&report["asked"], &report["answered"]), (&json!(3), &json!(3)));
}

/// Whether the binary reads Parquet files.
const PARQUET: bool = cfg!(feature = "parquet");

fn mmmu() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/eval/mmmu")
}

#[test]
fn without_parquet_support_mmmu_says_how_to_build_it() {
    if !PARQUET {
        let errors = failure(eval("mmmu", &mmmu()).args(["--out", "x"]));
        assert!(errors.contains("--features parquet"), "{errors}");
    }
}

#[test]
#[cfg_attr(not(feature = "parquet"), ignore = "needs the feature parquet")]
fn mmmu_is_read_from_its_parquet_files() {
    let choice = "<image 1> What is it?\n(A) $6\n(B) it's $7\n(C) a \"9\"\n\n\
                  Answer with the option's letter from the given choices directly.";
    let open = "How much?\nAnswer the question using a single word or phrase.";
    let answers = [
        ("validation_Accounting_1", "(B)", Some(choice)),
        ("validation_Accounting_2", "The answer is 1200 dollars", Some(open)),
        ("validation_Art_Theory_1", "It was claude monet.", None),
        ("validation_Art_Theory_2", "B", None),
        ("test_Art_Theory_3", "B", None),
    ];
    let report = scored(eval("mmmu", &mmmu()), &answers);
    assert_eq!(figures(&report), (0.75, 4, 0));
    let kinds: Vec<&str> = report["kinds"].as_array().expect("kinds").iter().map(|kind| text(&kind["kind"])).collect();
    assert_eq!(kinds, ["Accounting", "Art_Theory"]);
    // A single subject.
    assert_eq!(figures(&scored(eval("mmmu", &mmmu().join("Accounting")), &answers[..2])), (1.0, 2, 0));
}

fn golden(case: &str) -> PathBuf {
    goldens().join(case).join(text(&expected(case)["checkpoint"]))
}

/// The lines of a file of answers, without the settings.
fn answers(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("answers");
    text.lines().skip(1).map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Questions of a golden conversation; each has the earlier turns as its history.
fn golden_questions(case: &str) -> (Data, Vec<String>) {
    let expected = expected(case);
    let turns = expected["turns"].as_array().expect("turns");
    let image = goldens().join(case).join(text(&expected["images"][0]));
    let row = |index: usize| {
        let history: Vec<Value> =
            turns[..index].iter().map(|turn| json!({"question": turn["question"], "answer": turn["text"]})).collect();
        let (question, answer) = (&turns[index]["question"], &turns[index]["text"]);
        json!({"image": image, "question": question, "answer": answer, "history": history}).to_string()
    };
    let rows: Vec<String> = (0..turns.len()).map(row).collect();
    let texts = turns.iter().map(|turn| text(&turn["text"]).to_owned()).collect();
    (Data::new(&[("q.jsonl", &rows.join("\n"))]), texts)
}

fn ask(case: &str, data: &Data, more: &[&str]) -> Command {
    let mut command = eval("jsonl", &data.file("q.jsonl"));
    command.arg(golden(case)).arg("--out").arg(data.file("out.jsonl"));
    command.args(["--precision", "f32", "--max-new-tokens", "24"]).args(more);
    command
}

/// The model gives the answers of the golden conversation; a second run resumes the first.
#[test]
fn a_model_answers_and_a_second_run_resumes() {
    let (data, texts) = golden_questions("vicuna-7b");
    let out = data.file("out.jsonl");
    let first = report(&mut ask("vicuna-7b", &data, &["--limit", "1"]));
    assert_eq!((figures(&first), &first["run"]["questions"]), ((1.0, 1, 0), &json!(1)));
    // As if killed while writing a line, or on a full disk, inside a character.
    let mut bytes = fs::read(&out).expect("answers");
    let complete = bytes.len();
    bytes.extend(b"{\"id\":\"2\",\"text\":\"hal\xe2\x82");
    fs::write(&out, &bytes).expect("answers");
    let scores = report(eval("jsonl", &data.file("q.jsonl")).arg("--answers").arg(&out));
    assert_eq!(figures(&scores), (1.0, 1, 0));
    let second = report(&mut ask("vicuna-7b", &data, &[]));
    assert_eq!((figures(&second), &second["run"]["questions"]), ((1.0, 2, 0), &json!(1)));
    assert_eq!(fs::read(&out).expect("answers")[..complete], bytes[..complete]);
    let found: Vec<String> = answers(&out).iter().map(|answer| text(&answer["text"]).to_owned()).collect();
    assert_eq!(found, texts);
    // Every question is answered, so no device is opened.
    let third = report(ask("vicuna-7b", &data, &[]).args(["--adapter", "Voodoo 3"]));
    assert_eq!((figures(&third), third.get("run")), ((1.0, 2, 0), None));
    // The same answers, scored without the model.
    let scores = report(eval("jsonl", &data.file("q.jsonl")).arg("--answers").arg(&out));
    assert_eq!((figures(&scores), &scores["settings"]["model"]), ((1.0, 2, 0), &json!("MGM-7B")));
    let (code, table, _) = run(eval("jsonl", &data.file("q.jsonl")).arg("--answers").arg(&out));
    assert!(code == Some(0) && table.contains("100.0 %") && table.contains("34.2 to 100.0"), "{table}");

    for (arguments, message) in [
        ("--precision f32 --max-new-tokens 24 --no-high-resolution", "high_resolution true, this run has false"),
        ("--precision q8 --max-new-tokens 24", "precision \"f32\", this run has \"q8\""),
        ("--precision f32 --max-new-tokens 3", "max_new_tokens 24, this run has 3"),
        ("--precision f32 --max-new-tokens 24 --instruction Now.", "question 1 was"),
    ] {
        let mut command = eval("jsonl", &data.file("q.jsonl"));
        command.arg(golden("vicuna-7b")).arg("--out").arg(&out);
        let errors = failure(command.args(arguments.split(' ')));
        assert!(errors.contains(message), "{message} in {errors}");
    }
    let mut other = eval("jsonl", &data.file("q.jsonl"));
    other.arg(golden("yi-34b")).arg("--out").arg(&out).args(["--precision", "f32", "--max-new-tokens", "24"]);
    let errors = failure(&mut other);
    assert!(errors.contains("another model"), "{errors}");
}

/// The token ids are from tests/reference/make_low_resolution.py.
#[test]
fn without_high_resolution_answers_differ() {
    let (data, texts) = golden_questions("vicuna-7b");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/vision/low_resolution.json");
    let reference: Value = serde_json::from_slice(&fs::read(file).expect("a fixture")).expect("JSON");
    let expected = expected("vicuna-7b");
    let mut chat = Command::new(env!("CARGO_BIN_EXE_mgm"));
    chat.arg("chat").arg(golden("vicuna-7b")).args(["--prompt", text(&expected["turns"][0]["question"])]);
    chat.arg("--image").arg(goldens().join("vicuna-7b").join(text(&expected["images"][0])));
    chat.args(["--precision", "f32", "--temperature", "0", "--max-new-tokens", "8", "--no-high-resolution"]);
    let chat = report(&mut chat);
    assert_eq!(chat["turns"][0]["token_ids"], reference["vicuna-7b"]["greedy_ids"]);

    let mut command = eval("jsonl", &data.file("q.jsonl"));
    command.arg(golden("vicuna-7b")).arg("--out").arg(data.file("out.jsonl"));
    command.args(["--precision", "f32", "--max-new-tokens", "8", "--no-high-resolution", "--limit", "1"]);
    assert_eq!(report(&mut command)["settings"]["high_resolution"], false);
    let answer = answers(&data.file("out.jsonl"))[0]["text"].clone();
    assert_eq!(answer, chat["turns"][0]["text"]);
    assert!(!texts[0].starts_with(text(&answer)), "{answer}");
}

#[test]
fn embedded_images_are_encoded_and_too_long_questions_count_as_wrong() {
    let data = Data::new(&[]);
    if PARQUET {
        let mut command = eval("mmmu", &mmmu());
        command.arg(golden("gemma-2b")).arg("--out").arg(data.file("out.jsonl")).args(["--max-new-tokens", "1"]);
        let scores = report(&mut command);
        assert_eq!((figures(&scores).1, &scores["answered"], &scores["failed"]), (4, &json!(5), &json!(0)));
    }

    let long = "word ".repeat(9000);
    let rows = format!("{}\n{}", json!({"question": long, "answer": "x"}), json!({"question": "Hm?", "answer": "x"}));
    data.write("q.jsonl", rows);
    let mut command = eval("jsonl", &data.file("q.jsonl"));
    command.arg(golden("gemma-2b")).arg("--out").arg(data.file("long.jsonl")).args(["--max-new-tokens", "1"]);
    let scores = report(&mut command);
    assert_eq!((&scores["answered"], &scores["failed"]), (&json!(2), &json!(1)));
    assert!(text(&answers(&data.file("long.jsonl"))[0]["error"]).contains("context"));
    // POPE's script reads an empty answer as yes.
    let row = json!({"question_id": 1, "image": "none.png", "text": long, "label": "yes"});
    data.write("pope.json", row.to_string());
    data.write("no.jsonl", json!({"question_id": 1, "text": "", "error": "too long"}).to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.args(["eval", "--format", "pope", "--answers"]).arg(data.file("no.jsonl"));
    command.arg("--data").arg(data.file("pope.json"));
    let scores = report(&mut command);
    assert_eq!((figures(&scores).0, &scores["failed"]), (0.0, &json!(1)), "{scores}");
}

/// Orientation 6: viewers rotate the stored pixels by 90 degrees clockwise; the reference does not.
#[test]
fn images_are_decoded_as_by_the_reference_unless_asked() {
    let oriented = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/image/formats/orientation6.png");
    let image = image::open(&oriented).expect("an image").to_rgb8();
    let data = Data::new(&[]);
    image.save(data.file("stored.png")).expect("a file");
    image::imageops::rotate90(&image).save(data.file("upright.png")).expect("a file");
    let images = [oriented, data.file("stored.png"), data.file("upright.png")];
    let rows: Vec<String> =
        images.iter().map(|image| json!({"image": image, "question": "What?", "answer": "x"}).to_string()).collect();
    data.write("q.jsonl", rows.join("\n"));
    let asked = |out: &str, more: &[&str]| {
        let mut command = eval("jsonl", &data.file("q.jsonl"));
        command.arg(golden("gemma-2b")).arg("--out").arg(data.file(out)).args(["--precision", "f32"]);
        let report = report(command.args(["--max-new-tokens", "12"]).args(more));
        let texts: Vec<String> =
            answers(&data.file(out)).iter().map(|answer| text(&answer["text"]).to_owned()).collect();
        (report["settings"]["image_decoding"].clone(), texts)
    };
    let (decoding, texts) = asked("reference.jsonl", &[]);
    assert_eq!((decoding, &texts[0]), (json!("reference"), &texts[1]));
    assert_ne!(texts[0], texts[2]);
    let (decoding, corrected) = asked("corrected.jsonl", &["--image-decoding", "corrected"]);
    assert_eq!((decoding, &corrected[0]), (json!("corrected"), &texts[2]));
    assert_eq!(corrected[1..], texts[1..]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_can_be_resumed() {
    let data = Data::new(&[]);
    let rows: Vec<String> = (0..40)
        .map(|index| {
            // All images differ, so that the run takes a while.
            let name = format!("{index}.png");
            let colour = image::Rgb([index as u8, 90, 40]);
            image::RgbImage::from_pixel(8, 6, colour).save(data.file(&name)).expect("a PNG file");
            json!({"image": name, "question": "What?", "answer": "x"}).to_string()
        })
        .collect();
    data.write("q.jsonl", rows.join("\n"));
    let out = data.file("out.jsonl");
    let command = |more: &[&str]| {
        let mut command = eval("jsonl", &data.file("q.jsonl"));
        command
            .arg(golden("gemma-2b"))
            .arg("--out")
            .arg(&out)
            .args(["--max-new-tokens", "2", "--batch", "2"])
            .args(more);
        command
    };
    let child = command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let started = std::time::Instant::now();
    while fs::read_to_string(&out).map_or(0, |text| text.lines().count()) < 3 {
        assert!(started.elapsed().as_secs() < 120, "no answers");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // Two runs would answer the same questions.
    let errors = failure(&mut command(&[]));
    assert!(errors.contains("out.jsonl: another mgm eval writes to it"), "{errors}");
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.expect("kill runs").success());
    let output = child.wait_with_output().expect("an end");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("of 40 answered; run the same command") && errors.contains("cancelled"), "{errors}");
    let before = answers(&out).len();
    assert!((2..40).contains(&before), "{before}");
    let limit = (before + 2).to_string();
    let report = report(&mut command(&["--limit", &limit]));
    assert_eq!((&report["answered"], &report["run"]["questions"]), (&json!(before + 2), &json!(2)));
}

/// The error message of a command that must fail.
fn failure(command: &mut Command) -> String {
    let (code, out, errors) = run(command);
    assert_eq!(code, Some(2), "{errors}");
    assert!(out.is_empty() && errors.contains("error: ") && !errors.contains("panicked"), "{out}{errors}");
    errors
}

#[test]
fn errors_in_data_name_the_line() {
    let good = r#"{"image": "a.png", "question": "Q?", "answer": "x"}"#;
    let vocabulary = ("e/answers.txt", "yes\nno");
    let pope = r#"{"question_id": 1, "image": "a.png", "text": "Q?", "label": "maybe"}"#;
    let tsv = "index\tquestion\tA\tB\tanswer\timage\n";
    let annotations = r#"{"annotations": [{"question_id": 1, "answers": []}]}"#;
    let questions = r#"{"questions": [{"question_id": 1, "image_id": 1, "question": "Q?"}]}"#;
    // Format, data, files, more arguments, parts of the expected message.
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
    let rows: &[Row<'_>] = &[
        ("jsonl", "q.jsonl", &[], &[], &["q.jsonl"]),
        ("jsonl", "q.jsonl", &[("q.jsonl", "")], &[], &["q.jsonl", "has no questions"]),
        (
            "jsonl",
            "q.jsonl",
            &[("q.jsonl", "{\"question\": \"Q?\", \"answer\": \"x\"}\n{\"q")],
            &[],
            &["line 2", "column"],
        ),
        ("jsonl", "q.jsonl", &[("q.jsonl", "[1, 2]")], &[], &["line 1", "string"]),
        ("jsonl", "q.jsonl", &[("q.jsonl", "{\"question\": 7}")], &[], &["line 1", "string"]),
        ("jsonl", "q.jsonl", &[("q.jsonl", "{\"question\": \"Q?\"}")], &[], &["line 1", "\"answers\""]),
        ("jsonl", "q.jsonl", &[("q.jsonl", "{\"question\": \"Q?\", \"answers\": []}")], &[], &["line 1", "not empty"]),
        (
            "jsonl",
            "q.jsonl",
            &[(
                "q.jsonl",
                "{\"id\": 2, \"question\": \"Q?\", \"answer\": \"x\"}\n{\"question\": \"Q?\", \"answer\": \"x\"}",
            )],
            &[],
            &["line 2", "\"2\" is already used at line 1"],
        ),
        ("jsonl", "q.jsonl", &[("q.jsonl", good)], &[], &["a.png", "missing", "line 1"]),
        (
            "jsonl",
            "q.jsonl",
            &[("q.jsonl", good), ("p/a.png", "not an image")],
            &["--images", "p"],
            &["a.png", "not an image"],
        ),
        ("easy-vqa", "e", &[vocabulary, ("e/questions.json", "{}")], &[], &["questions.json", "line 1", "sequence"]),
        (
            "easy-vqa",
            "e",
            &[vocabulary, ("e/questions.json", "[[\"Q?\", \"yes\", 1], [\"Q?\", 1]]")],
            &[],
            &["row 1", "number of the image"],
        ),
        (
            "easy-vqa",
            "e",
            &[vocabulary, ("e/questions.json", "[[\"Q?\", \"red\", 1]]")],
            &[],
            &["row 0", "red", "answers.txt"],
        ),
        ("easy-vqa", "e", &[("e/questions.json", "[]")], &[], &["answers.txt"]),
        ("pope", "p.json", &[("p.json", pope)], &[], &["line 1", "maybe", "yes"]),
        (
            "pope",
            "p",
            &[("p/coco_pope_random.json", &pope.replace("maybe", "no"))],
            &[],
            &["p/a.png", "missing", "line 1"],
        ),
        ("pope", "p", &[("p/readme.txt", "")], &[], &["no json or jsonl file"]),
        ("mmbench", "m.tsv", &[("m.tsv", "a,b\n")], &[], &["line 1", "index"]),
        (
            "mmbench",
            "m.tsv",
            &[("m.tsv", &format!("{tsv}1\tQ?\tx\ty\tC\tAAAA\n"))],
            &[],
            &["line 2", "\"C\"", "2 options"],
        ),
        ("mmbench", "m.tsv", &[("m.tsv", &format!("{tsv}1\tQ?\tx\n"))], &[], &["line 2", "3 columns", "6"]),
        ("mmbench", "m.tsv", &[("m.tsv", &format!("{tsv}1\tQ?\tx\ty\tA\t7\n"))], &[], &["line 2", "base64"]),
        ("mmmu", "m.parquet", &[("m.parquet", "PAR1 and nothing else PAR1")], &[], &["m.parquet", "Parquet"]),
        ("vqa", "q.json", &[("q.json", questions)], &[], &["--annotations"]),
        (
            "vqa",
            "q.json",
            &[("q.json", questions), ("a.json", annotations)],
            &["--annotations", "a.json"],
            &["a.json", "question 1", "no answers"],
        ),
        (
            "textvqa",
            "q.jsonl",
            &[
                ("q.jsonl", "{\"question_id\": \"ab\", \"image\": \"ab.jpg\", \"text\": \"Q?\\nAnswer.\"}"),
                ("a.json", "{\"data\": []}"),
            ],
            &["--annotations", "a.json"],
            &["a.json", "line 1", "q?"],
        ),
    ];
    for (format, file, files, more, message) in rows.iter().copied().filter(|row| PARQUET || row.0 != "mmmu") {
        let data = Data::new(files);
        let mut command = eval(format, Path::new(file));
        command.current_dir(data.0.path()).arg(golden("gemma-2b")).args(["--out", "out.jsonl"]).args(more);
        let errors = failure(&mut command);
        for part in message {
            assert!(errors.contains(part), "{format} {files:?}: {part:?} is not in {errors}");
        }
    }
}

/// Each format's files as they get left: with a byte-order mark, with values of unused keys that only Python reads, and
/// as Git LFS pointers.
#[test]
fn files_of_every_format_as_programs_leave_them() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let jsonl = r#"{"question": "Q?", "answer": "x", "id": 1, "score": NaN, "kind": "a", "kind": "b"}"#;
    let pope = r#"{"question_id": 1, "image": "a.png", "text": "Q?", "label": "yes", "score": -Infinity}"#;
    let questions = r#"{"info": NaN, "questions": [{"question_id": 1, "image_id": 1, "question": "Q?", "x": NaN}]}"#;
    let answers = r#"{"annotations": [{"question_id": 1, "answers": [{"answer": "x", "confidence": NaN}]}]}"#;
    let text_vqa = r#"{"data": [{"question_id": 1, "image_id": "ab", "question": "q?", "answers": ["x"], "w": NaN}]}"#;
    let llava = r#"{"question_id": "ab", "image": "ab.jpg", "text": "q?\nAnswer.", "score": NaN}"#;
    let tsv = "index\tquestion\tA\tB\tanswer\timage\n1\tQ?\tx\ty\tA\tAAAA\n";
    // Format, data, files, more arguments, the right answer.
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let rows: &[Row<'_>] = &[
        ("jsonl", "q.jsonl", &[("q.jsonl", jsonl)], &[], "x"),
        ("pope", "p.json", &[("p.json", pope)], &[], "yes"),
        ("mmbench", "m.tsv", &[("m.tsv", tsv)], &[], "A"),
        ("vqa", "q.json", &[("q.json", questions), ("a.json", answers)], &["--annotations", "a.json"], "x"),
        ("textvqa", "t.json", &[("t.json", text_vqa)], &[], "x"),
        ("textvqa", "q.jsonl", &[("q.jsonl", llava), ("t.json", text_vqa)], &["--annotations", "t.json"], "x"),
        ("easy-vqa", "e", &[("e/questions.json", r#"[["Q?", "yes", 1]]"#), ("e/answers.txt", "yes\nno")], &[], "yes"),
    ];
    for (format, data, files, more, answer) in rows {
        let id = if *format == "easy-vqa" { 0 } else { 1 };
        // A line of another program's answers, with a mark too.
        let answers = format!("\u{feff}{{\"id\": {id}, \"text\": \"{answer}\", \"logprob\": -Infinity}}\n");
        let folder = Data::new(&[("answers.jsonl", &answers)]);
        let command = || {
            let mut command = eval(format, Path::new(data));
            command.current_dir(folder.0.path()).args(["--answers", "answers.jsonl"]).args(*more);
            command
        };
        for (name, text) in *files {
            folder.write(name, format!("\u{feff}{text}"));
        }
        let report = report(&mut command());
        assert_eq!(report["answered"], 1, "{format}");
        // Of one annotator out of ten, none agrees with VQA's formula.
        if !matches!(*format, "vqa" | "textvqa") {
            assert_eq!(figures(&report), (1.0, 1, 0), "{format}");
        }
        for (name, text) in *files {
            folder.write(name, pointer);
            let errors = failure(&mut command());
            assert!(errors.contains(name) && errors.contains("git lfs pull"), "{format}: {errors}");
            folder.write(name, text);
        }
        folder.write("answers.jsonl", pointer);
        let errors = failure(&mut command());
        assert!(errors.contains("answers.jsonl") && errors.contains("git lfs pull"), "{format}: {errors}");
    }
    let folder = Data::new(&[("m.parquet", pointer), ("answers.jsonl", "")]);
    if PARQUET {
        let mut command = eval("mmmu", &folder.file("m.parquet"));
        let errors = failure(command.arg("--answers").arg(folder.file("answers.jsonl")));
        assert!(errors.contains("m.parquet") && errors.contains("git lfs pull"), "{errors}");
    }
    folder.write("q.jsonl", jsonl.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    folder.write("q.jsonl", [b"\xff\xfe".as_slice(), &fs::read(folder.file("q.jsonl")).expect("a file")].concat());
    let mut command = eval("jsonl", &folder.file("q.jsonl"));
    let errors = failure(command.arg("--answers").arg(folder.file("answers.jsonl")));
    assert!(errors.contains("UTF-16, expected UTF-8"), "{errors}");
}

#[test]
#[cfg_attr(not(feature = "parquet"), ignore = "needs the feature parquet")]
fn damage_anywhere_in_a_parquet_file_is_an_error() {
    let bytes = fs::read(mmmu().join("Accounting/validation-00000-of-00001.parquet")).expect("a file");
    let data = Data::new(&[("answers.jsonl", "")]);
    let mut failures = 0;
    for place in (0..bytes.len()).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x55;
        if place % 2 == 0 {
            damaged.truncate(place);
        }
        data.write("m.parquet", &damaged);
        let mut command = eval("mmmu", &data.file("m.parquet"));
        let (code, _, errors) = run(command.arg("--answers").arg(data.file("answers.jsonl")));
        assert!(matches!(code, Some(0 | 2)) && !errors.contains("panicked"), "byte {place}: {code:?} {errors}");
        failures += usize::from(code == Some(2));
    }
    assert!(failures > 40, "{failures}");
}

#[test]
fn bad_answers_and_arguments_are_errors() {
    let data = Data::new(&[("q.jsonl", "{\"question\": \"Q?\", \"answer\": \"x\"}")]);
    let score_lines = |lines: &str| {
        data.write("answers.jsonl", lines);
        failure(eval("jsonl", &data.file("q.jsonl")).arg("--answers").arg(data.file("answers.jsonl")))
    };
    let one = "{\"id\": 1, \"text\": \"x\"}\n";
    for (lines, message) in [
        (format!("{one}{{\"id\": 1}}\n"), ["line 2", "text"]),
        (format!("{one}{one}"), ["line 2", "twice"]),
        ("{\"id\": 5, \"text\": \"x\"}\n".to_owned(), ["line 1", "no question \"5\""]),
        ("{\"id\": 1, \"text\": \"x\", \"prompt\": \"Z?\"}\n".to_owned(), ["line 1", "now \"Q?\""]),
        ("{\"mgm_eval\": {}}\n".to_owned(), ["line 1", "format"]),
        ("\u{0}\n".to_owned(), ["line 1", "column"]),
    ] {
        let errors = score_lines(&lines);
        assert!(message.iter().all(|part| errors.contains(part)), "{lines}: {errors}");
    }
    data.write("answers.jsonl", b"\xff\n");
    let errors = failure(eval("jsonl", &data.file("q.jsonl")).arg("--answers").arg(data.file("answers.jsonl")));
    assert!(errors.contains("line 1") && errors.contains("UTF-8"), "{errors}");

    // Answers of another program are not resumed.
    data.write("answers.jsonl", one);
    let mut command = eval("jsonl", &data.file("q.jsonl"));
    let errors = failure(command.arg(golden("gemma-2b")).arg("--out").arg(data.file("answers.jsonl")));
    assert!(errors.contains("line 1") && errors.contains("--answers"), "{errors}");
    assert_eq!(fs::read_to_string(data.file("answers.jsonl")).expect("the file"), one);

    let errors = failure(&mut eval("jsonl", &data.file("q.jsonl")));
    assert!(errors.contains("--out") && errors.contains("required"), "{errors}");
    let errors = failure(eval("coco", &data.file("q.jsonl")).args(["--out", "x"]));
    assert!(errors.contains("easy-vqa") && errors.contains("textvqa"), "{errors}");
    // No bundled model is found.
    let mut command = eval("jsonl", &data.file("q.jsonl"));
    let errors = failure(command.args(["--out", "x"]).env("MGM_MODELS", data.file("models")));
    assert!(errors.contains("pocket"), "{errors}");
    let errors = failure(eval("jsonl", &data.file("q.jsonl")).args(["--out", "x", "--seed", "1"]));
    assert!(errors.contains("--limit"), "{errors}");
    let mut command = eval("jsonl", &data.file("q.jsonl"));
    let errors = failure(command.arg(golden("gemma-2b")).args(["--out", "/nowhere/x.jsonl"]));
    assert!(errors.contains("/nowhere/x.jsonl"), "{errors}");
}
