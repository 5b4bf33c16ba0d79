//! `mgm-web-glue MODULE.wasm FOLDER` writes the JavaScript bindings of a module, like `wasm-bindgen --target web`.
//! It is a program of this repository so that a lock file pins its dependencies.

use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [module, folder] = &arguments[..] else {
        eprintln!("usage: mgm-web-glue MODULE.wasm FOLDER");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    let result = bindgen.web(true).and_then(|bindgen| {
        // The worker passes the module's response. A default path would be `import.meta.url`, which classic workers do
        // not have.
        bindgen.input_path(module).typescript(true).omit_default_module_path(true).generate(folder)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
