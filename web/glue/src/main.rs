//! `mgm-web-glue MODULE.wasm FOLDER`: the JavaScript side of a module, as `wasm-bindgen --target web` writes it.
//! A program of our own, since its libraries' versions are then in a lock file of our own.

use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [module, folder] = &arguments[..] else {
        eprintln!("usage: mgm-web-glue MODULE.wasm FOLDER");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    let made = bindgen.web(true).and_then(|bindgen| {
        // Bundlers find the module by `new URL("…", import.meta.url)`.
        bindgen.input_path(module).typescript(true).omit_default_module_path(false).generate(folder)
    });
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
