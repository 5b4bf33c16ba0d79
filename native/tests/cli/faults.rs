//! Faults of the system: interrupts and kills, folders that cannot be written to, drivers that lack what they should
//! have.
#![cfg(unix)]

use std::process::{Command, Output, Stdio};

fn mgm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// llvmpipe on a processor without F16C cannot convert f16. On other adapters the variable has no effect.
#[test]
fn a_driver_without_f16_conversions_gives_the_same_answers() {
    let output = run(mgm().arg("doctor").env("GALLIUM_OVERRIDE_CPU_CAPS", "sse2"));
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    let mut chat = mgm();
    chat.args(["chat", "--temperature", "0", "--prompt", "What is this?", "--image"]);
    chat.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../pocket/examples/shark.png"));
    let plain = text(&run(&mut chat).stdout);
    let output = run(chat.env("GALLIUM_OVERRIDE_CPU_CAPS", "sse2"));
    assert_eq!(text(&output.stdout), plain, "{}", text(&output.stderr));
    assert!(plain.contains("shark"), "{plain}");
    // The note is there if the variable has an effect.
    assert_eq!(text(&output.stderr).contains("cannot convert f16"), printed.contains("cannot convert f16"));
}
