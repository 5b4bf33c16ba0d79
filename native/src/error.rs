//! How a command fails.

use mgm::Setting;

/// An error of the core, or of standard input or output.
#[derive(Debug)]
pub enum CliError {
    Core(mgm::Error),
    /// An error of the image model in `mgm chat`, which has its own option names.
    Image(mgm::Error),
    /// The device is lost for good, and `mgm serve` was to end then.
    Loss(mgm::Error),
    Input(std::io::Error),
    Output(std::io::Error),
}

impl CliError {
    /// Whether Ctrl-C stopped the command.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Core(mgm::Error::Cancelled) | Self::Image(mgm::Error::Cancelled))
    }
}

impl From<mgm::Error> for CliError {
    fn from(error: mgm::Error) -> Self {
        Self::Core(error)
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Core(error) | Self::Image(error) | Self::Loss(error) => {
                error.fmt(f)?;
                let option = match (self, error.remedy()) {
                    (Self::Image(_), Some(Setting::Precision)) => Some("--image-precision P"),
                    (_, setting) => setting.and_then(option_for),
                };
                match (option, error) {
                    (Some(option), _) => write!(f, " ({option})"),
                    (None, mgm::Error::NoAdapter(_)) => f.write_str(&driver_hint(|name| std::env::var(name).ok())),
                    _ => Ok(()),
                }
            }
            Self::Input(error) => write!(f, "reading the input: {error}"),
            Self::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}

/// The option of a setting. The core's messages name none: its other users have no command line.
fn option_for(setting: Setting) -> Option<&'static str> {
    match setting {
        Setting::VisionTower => Some("--vision-tower DIR"),
        Setting::HighResolutionTower => Some("--vision-tower-hr DIR"),
        Setting::Components => Some("--tokenizer DIR of mgm generate and mgm chat"),
        Setting::Vae => Some("--vae FILE of mgm generate and mgm chat"),
        Setting::Template => Some("--conversation NAME of mgm chat, eval and pack"),
        Setting::Scheduler => Some("--scheduler NAME of mgm generate and mgm chat"),
        Setting::Precision => Some("--precision P"),
        Setting::ImageModel => Some("--image-model MODEL of mgm chat, or mgm generate MODEL"),
        _ => None,
    }
}

/// The variables that tell the Vulkan loader which drivers to load, the first that is set counts.
const DRIVER_FILES: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

/// What a message without an adapter adds if the environment restricts the drivers.
fn driver_hint(variable: impl Fn(&str) -> Option<String>) -> String {
    let set = DRIVER_FILES.iter().find_map(|name| Some((name, variable(name).filter(|value| !value.is_empty())?)));
    let Some((name, value)) = set else { return String::new() };
    let missing = std::env::split_paths(&value).find(|path| !path.exists());
    let reason = match missing {
        Some(path) => format!("there is no {}", path.display()),
        None => "they are the only drivers that the Vulkan loader loads".to_owned(),
    };
    format!(" ({name} is {value}: {reason}; correct or unset it)")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn messages_name_the_option_of_the_setting_that_resolves_them() {
        let commands = crate::Options::command();
        let is_option = |option: &str| {
            let name = option.strip_prefix("--").and_then(|option| option.split(' ').next());
            let mut arguments = commands.get_subcommands().flat_map(clap::Command::get_arguments);
            arguments.any(|argument| argument.get_long() == name)
        };
        let no_memory = mgm::Error::OutOfMemory { what: "it".to_owned(), needed: 2, available: 1 };
        for setting in [
            Setting::VisionTower,
            Setting::HighResolutionTower,
            Setting::Components,
            Setting::Vae,
            Setting::Template,
            Setting::Scheduler,
            Setting::Precision,
            Setting::ImageModel,
        ] {
            let error = match setting {
                Setting::Precision => no_memory.clone(),
                _ => mgm::Error::NeedsSetting { setting, file: "model".to_owned(), reason: "why".to_owned() },
            };
            let option = option_for(setting).unwrap_or_else(|| panic!("{setting:?} has no option"));
            assert_eq!(CliError::from(error.clone()).to_string(), format!("{error} ({option})"));
            assert!(is_option(option), "no command has the option {option}");
        }
        let option = "--image-precision P";
        assert_eq!(CliError::Image(no_memory.clone()).to_string(), format!("{no_memory} ({option})"));
        assert!(is_option(option));
        assert_eq!(CliError::from(mgm::Error::Cancelled).to_string(), "cancelled");
    }

    #[test]
    fn a_message_without_an_adapter_names_the_variable_that_restricts_drivers() {
        let set = |wanted: &'static str, value: &'static str| {
            driver_hint(move |name| (name == wanted).then(|| value.to_owned()))
        };
        for name in DRIVER_FILES {
            let hint = set(name, "/nowhere/icd.json");
            assert!(hint.contains(name) && hint.contains("there is no /nowhere/icd.json"), "{hint}");
            let hint = set(name, env!("CARGO_MANIFEST_DIR"));
            assert!(hint.contains(name) && hint.contains("only drivers"), "{hint}");
            assert_eq!(set(name, ""), "");
        }
        assert_eq!(set("HOME", "/nowhere"), "");
    }
}
