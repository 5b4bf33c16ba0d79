//! How a command fails.

use mgm::Setting;

/// An error of the core, or of standard input or output.
#[derive(Debug)]
pub enum CliError {
    Core(mgm::Error),
    /// An error of the image model in `mgm chat`, which has its own option names.
    Image(mgm::Error),
    Input(std::io::Error),
    Output(std::io::Error),
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
            Self::Core(error) | Self::Image(error) => {
                error.fmt(f)?;
                let option = match (self, error.remedy()) {
                    (Self::Image(_), Some(Setting::Precision)) => Some("--image-precision P"),
                    (_, setting) => setting.and_then(option_for),
                };
                match option {
                    Some(option) => write!(f, " ({option})"),
                    None => Ok(()),
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
}
