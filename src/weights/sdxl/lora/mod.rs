//! Adapter files: LoRA (Hu et al., 2021) and its variants, applied to weights as they are read.
//!
//! | kind | what it does to a weight W |
//! | --- | --- |
//! | LoRA | W + k up down; for convolutions also with a core between the two (LyCORIS' Tucker decomposition) |
//! | LoHa | W + k (a1 b1) ⊙ (a2 b2) |
//! | LoKr | W + k w1 ⊗ w2, each stored as a matrix or as a product of two |
//! | DoRA, with each of these | m (W + term) / ‖W + term‖, the norm of each row or of each input channel |
//! | differences | W + k difference, of weights, biases and norms |
//! | IA³ (LyCORIS) | W (1 + k w), by rows or by input channels |
//!
//! Here k is alpha / rank. It is 1 without an alpha, and for an alpha of 0 in a tensor. PEFT's rank-stabilised LoRA has
//! alpha / √rank. LoKr with two whole factors has k = 1. The caller's scale multiplies k; with DoRA the result is W +
//! scale (DoRA's result - W), as in ComfyUI and LyCORIS.
//!
//! Names are those of Kohya's scripts, diffusers, PEFT, LyCORIS, OneTrainer and SimpleTuner, and the original code's
//! with dots. All of them are compared in one form ([`tensors::canonical`]), so that names do not change the result.
//!
//! Files apply in the order in which they are merged: DoRA's norm is that of the weight with all earlier changes.

mod config;
mod modules;
mod tensors;
mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::rc::Rc;

use self::config::{AdapterConfig, METADATA_KEY};
use self::modules::{Modules, Network};
use self::tensors::Role;
use self::terms::{Adapter, Factor, Magnitudes, Product, Target, Term};
use super::config::{TextEncoderConfig, UnetConfig};
use crate::io::{ByteSource, Folder, read_file};
use crate::weights::checkpoint::Checkpoint;
use crate::weights::config::MAX_CONFIG;
use crate::weights::safetensors::read_metadata;
use crate::weights::view::Weights;
use crate::{Error, Result};

/// PEFT's configuration next to the weights of an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// File names of adapters in folders of PEFT and of diffusers, in order of preference.
const FILES: [&str; 4] =
    ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin", "pytorch_lora_weights.bin"];

/// Starts of modules' names in diffusers' files, and of the settings for them in the metadata.
const METADATA_PREFIXES: [&str; 3] = ["unet.", "text_encoder.", "text_encoder_2."];

/// For messages.
const KINDS: &str = "mgm reads LoRA, LoHa, LoKr, DoRA, IA3 and differences of weights";

/// With more modules of wrong shapes, and more than a tenth of all, a file is for another model, which may have some
/// shapes in common with this one.
const MISFITS: usize = 3;

/// What PEFT puts before the names of modules.
const PEFT: &str = "base_model.model.";

/// An opened adapter file. Only names, shapes and alphas are in memory.
pub struct Lora {
    file: Rc<Checkpoint>,
    scale: f32,
    /// By the module's canonical name.
    modules: BTreeMap<String, Module>,
    embeddings: BTreeSet<String>,
    /// Tensors of other kinds.
    unread: Vec<String>,
    /// Settings outside the tensors, by the prefix of the modules' names that they are for.
    configs: Vec<(&'static str, AdapterConfig)>,
}

/// The tensors that adapt one module.
struct Module {
    /// The name in the file.
    name: String,
    tensors: BTreeMap<Role, String>,
    alpha: Option<f32>,
    scalar: Option<f32>,
    on_input: bool,
    /// Why the module cannot be used.
    error: Option<Error>,
}

/// Which parts of a file were merged, and which were not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoraReport {
    /// The file.
    pub file: String,
    /// Number of modules in the file.
    pub modules: usize,
    /// Modules that the model does not have.
    pub unknown: Vec<String>,
    /// Why other modules are not used: tensors that are missing, of the wrong shape or of unknown kinds.
    pub unusable: Vec<String>,
    /// Bundled embeddings, which are not used.
    pub embeddings: Vec<String>,
    /// Tensors of kinds that are not read, and biases of layers that have none.
    pub unread: Vec<String>,
}

impl LoraReport {
    /// A sentence on each kind of content that was not used.
    pub fn notes(&self) -> Vec<String> {
        let Self { file, modules, unknown, unusable, embeddings, unread } = self;
        let mut notes = Vec::new();
        if !embeddings.is_empty() {
            notes.push(format!("{file} bundles embeddings, which are not used: {}", shown(embeddings)));
        }
        if !unknown.is_empty() {
            let (count, names) = (unknown.len(), shown(unknown));
            notes.push(format!("{file}: {count} of {modules} modules are not in the model and not used: {names}"));
        }
        if !unusable.is_empty() {
            let (count, reasons) = (unusable.len(), shown(unusable));
            notes.push(format!("{file}: {count} of {modules} modules cannot be used: {reasons}"));
        }
        if !unread.is_empty() {
            let (count, names) = (unread.len(), shown(unread));
            notes.push(format!("{file}: {count} tensors are of kinds that mgm does not read, and not used: {names}"));
        }
        notes
    }
}

impl Lora {
    /// Opens a file, with its changes scaled by `scale`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not an adapter file; [`Error::Io`] of reading an alpha; the errors of
    /// [`Checkpoint::open_file`].
    pub async fn open(source: Rc<dyn ByteSource>, scale: f32) -> Result<Self> {
        let metadata = read_metadata(&*source).await?.remove(METADATA_KEY);
        let file = Rc::new(Checkpoint::open_file(source).await?);
        let mut lora = Self {
            file: Rc::clone(&file),
            scale,
            modules: BTreeMap::new(),
            embeddings: BTreeSet::new(),
            unread: Vec::new(),
            configs: Vec::new(),
        };
        for name in file.names() {
            if let Some(embedding) = tensors::embedding(name) {
                lora.embeddings.insert(embedding.to_owned());
                continue;
            }
            // IA³'s factors are called weights, as are whole weights that some adapters include.
            let vector = name.strip_suffix(".weight").filter(|it| file.info(&format!("{it}.on_input")).is_some());
            let parsed = vector.map(|module| (module, Role::Vector)).or_else(|| tensors::parse(name));
            match parsed {
                Some((module, role)) => lora.add(name, module, role).await?,
                None => lora.unread.push(name.to_owned()),
            }
        }
        for prefix in METADATA_PREFIXES {
            let Some(text) = &metadata else { break };
            let what = format!("{}: {METADATA_KEY}", file.name());
            let config = AdapterConfig::parse(&what, text.as_bytes(), prefix)?;
            lora.configs.extend(config.map(|config| (prefix, config)));
        }
        if lora.modules.is_empty() {
            let reason = match (file.is_empty(), lora.embeddings.is_empty()) {
                (true, _) => "it contains no tensors".to_owned(),
                (_, false) => "it contains no adapter, only embeddings, which mgm does not read".to_owned(),
                _ => format!("not tensors of a LoRA: {}; {KINDS}", shown(&lora.unread)),
            };
            return Err(Error::Config { file: file.name().to_owned(), reason });
        }
        Ok(lora)
    }

    /// Opens the adapter in a folder as PEFT or diffusers write it, with its configuration.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if the folder has no adapter; otherwise as [`Self::open`] and
    /// [`Self::with_adapter_config`].
    pub async fn open_folder(folder: &dyn Folder, scale: f32) -> Result<Self> {
        for file in FILES {
            if let Some(source) = folder.open(file).await? {
                return Self::open(source, scale).await?.with_config_in(folder).await;
            }
        }
        let (file, hint) =
            (format!("{}/{}", folder.name(), FILES[0]), format!("no LoRA here; looked for {}", FILES.join(", ")));
        Err(Error::MissingFile { file, hint })
    }

    /// Uses `adapter_config.json` in `folder`, the file's, if the file's names are PEFT's and the folder has one.
    ///
    /// # Errors
    /// As [`Self::with_adapter_config`]; [`Error::Io`].
    pub async fn with_config_in(self, folder: &dyn Folder) -> Result<Self> {
        if !self.modules.values().any(|module| module.name.starts_with(PEFT)) {
            return Ok(self);
        }
        match read_file(folder, ADAPTER_CONFIG, MAX_CONFIG).await? {
            Some(bytes) => self.with_adapter_config(&format!("{}/{ADAPTER_CONFIG}", folder.name()), &bytes),
            None => Ok(self),
        }
    }

    /// Uses PEFT's configuration: alphas for modules without one of their own, and how they are scaled.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::Config`] if `bytes`, the contents of `file`, are not a configuration of PEFT.
    pub fn with_adapter_config(mut self, file: &str, bytes: &[u8]) -> Result<Self> {
        self.configs.extend(AdapterConfig::parse(file, bytes, "")?.map(|config| ("", config)));
        Ok(self)
    }

    /// Adds a tensor to its module.
    async fn add(&mut self, name: &str, module: &str, role: Role) -> Result<()> {
        let known = self.modules.entry(tensors::canonical(module)).or_insert_with(|| Module {
            name: module.to_owned(),
            tensors: BTreeMap::new(),
            alpha: None,
            scalar: None,
            on_input: false,
            error: None,
        });
        if matches!(role, Role::Alpha | Role::Scalar | Role::OnInput) {
            match (self.file.read_number(name).await, role) {
                (Err(error @ Error::Io { .. }), _) => return Err(error),
                (Err(error), _) => known.error = Some(error),
                (Ok(number), Role::Alpha) => known.alpha = Some(number),
                (Ok(number), Role::Scalar) => known.scalar = Some(number),
                (Ok(number), _) => known.on_input = number != 0.0,
            }
        } else if let Some(other) = known.tensors.insert(role, name.to_owned()) {
            let reason = format!("tensors {other} and {name} have the same purpose");
            known.error = Some(Error::Config { file: self.file.name().to_owned(), reason });
        }
        Ok(())
    }

    /// The file's name without folder and extension, and the scale.
    pub(super) fn name_and_scale(&self) -> (String, f32) {
        let name = std::path::Path::new(self.file.name()).file_stem().unwrap_or_default();
        (name.to_string_lossy().into_owned(), self.scale)
    }

    pub(super) fn merge(
        &self,
        unet: &mut (Weights, UnetConfig),
        text: &mut [(Weights, TextEncoderConfig); 2],
    ) -> Result<LoraReport> {
        let names = Modules::new(unet, text);
        let mut report = LoraReport {
            file: self.file.name().to_owned(),
            modules: self.modules.len(),
            unknown: Vec::new(),
            unusable: Vec::new(),
            embeddings: self.embeddings.iter().cloned().collect(),
            unread: self.unread.clone(),
        };
        let (mut unusable, mut misfits) = (None, 0);
        let mut merged: BTreeMap<Network, Checkpoint> = BTreeMap::new();
        let mut by_tensor: BTreeMap<(Network, String), &str> = BTreeMap::new();
        for (canonical, module) in &self.modules {
            let candidates = names.find(canonical);
            let mut changes = Err(Error::Internal("no module".to_owned()));
            for (network, tensor) in &candidates {
                let weights = match network {
                    Network::Unet => &unet.0,
                    Network::Text(index) => &text[*index].0,
                };
                changes = self.changes(module, weights, tensor).map(|changes| (*network, weights, changes));
                if changes.is_ok() {
                    break;
                }
            }
            if candidates.is_empty() {
                report.unknown.push(module.name.clone());
                continue;
            }
            let (network, weights, (changes, unread)) = match changes {
                Ok(changes) => changes,
                Err(error) => {
                    misfits += usize::from(matches!(error, Error::WrongShape { .. }));
                    report.unusable.push(match &error {
                        Error::Config { reason, .. } => reason.clone(),
                        error => error.to_string(),
                    });
                    unusable.get_or_insert(error);
                    continue;
                }
            };
            report.unread.extend(unread);
            for adapter in changes {
                let tensor = adapter.target.name.clone();
                if let Some(other) = by_tensor.insert((network, tensor.clone()), &module.name) {
                    let reason = format!("modules {other} and {} both change {tensor}", module.name);
                    return Err(Error::Config { file: report.file, reason });
                }
                let checkpoint = merged.entry(network).or_insert_with(|| (**weights.checkpoint()).clone());
                checkpoint.add_delta(&tensor, Rc::new(adapter))?;
            }
        }
        if misfits > MISFITS && misfits > report.modules / 10 {
            let (count, modules, reasons) = (report.unusable.len(), report.modules, shown(&report.unusable));
            let reason = format!("{count} of {modules} modules do not fit: {reasons}");
            return Err(Error::Config { file: report.file, reason });
        }
        if merged.is_empty() {
            let LoraReport { unknown, unread, .. } = &report;
            let reason = match unusable {
                Some(error) if unknown.is_empty() && unread.is_empty() => return Err(error),
                Some(_) => {
                    let all = [&report.unusable[..], unknown, unread].concat();
                    format!("nothing in it can be used: {}; {KINDS}; is the file for another model?", shown(&all))
                }
                None => {
                    let names = shown(if unknown.is_empty() { unread } else { unknown });
                    format!("the model has no modules for {names}: is the file for another model?")
                }
            };
            return Err(Error::Config { file: report.file, reason });
        }
        for (network, checkpoint) in merged {
            let weights = Weights::new(Rc::new(checkpoint));
            match network {
                Network::Unet => unet.0 = weights,
                Network::Text(index) => text[index].0 = weights,
            }
        }
        Ok(report)
    }

    /// The adapters of `tensor`, a weight of the model, and of its bias; and the names of the module's tensors for a
    /// bias that the model lacks.
    fn changes(&self, module: &Module, weights: &Weights, tensor: &str) -> Result<(Vec<Adapter>, Vec<String>)> {
        if let Some(error) = &module.error {
            return Err(error.clone());
        }
        let target = |tensor: &str| Ok(Target { name: tensor.to_owned(), shape: weights.shape(tensor)?.to_vec() });
        let (mut changes, mut unread) = (Vec::new(), Vec::new());
        if let Some(term) = self.term(module)? {
            let target = target(tensor)?;
            let rank = term.check(&self.file, &target)?;
            let magnitudes = [Role::DoraScale, Role::Magnitude].into_iter().find_map(|role| {
                let name = module.tensors.get(&role)?;
                Some(Magnitudes::new(&self.file, name, role == Role::Magnitude, weights.checkpoint(), &target))
            });
            let factor = self.factor(module, &term, rank)?;
            let (file, strength) = (Rc::clone(&self.file), self.scale);
            let magnitudes = magnitudes.transpose()?;
            changes.push(Adapter { file, target, term, factor, strength, magnitudes });
        }
        let factor_of_up = || {
            let rank = module.tensors.get(&Role::Down).and_then(|down| self.file.info(down)?.shape.first().copied());
            self.scaling(module, rank)
        };
        for (role, factor) in [(Role::DiffBias, 1.0), (Role::UpBias, factor_of_up())] {
            let Some(name) = module.tensors.get(&role) else { continue };
            let bias = match tensor.strip_suffix(".weight") {
                Some(module) => format!("{module}.bias"),
                None => continue,
            };
            if !weights.contains(&bias) {
                unread.push(name.clone());
                continue;
            }
            let (term, target) = (Term::Difference(name.clone()), target(&bias)?);
            term.check(&self.file, &target)?;
            let (file, strength) = (Rc::clone(&self.file), self.scale);
            changes.push(Adapter { file, target, term, factor, strength, magnitudes: None });
        }
        if changes.is_empty() && unread.is_empty() {
            let reason = format!("module {} has no matrices that mgm reads", module.name);
            return Err(Error::Config { file: self.file.name().to_owned(), reason });
        }
        Ok((changes, unread))
    }

    /// What the module adds to a weight; `None` if it has tensors for a bias only.
    fn term(&self, module: &Module) -> Result<Option<Term>> {
        let bad = |reason: String| Error::Config {
            file: self.file.name().to_owned(),
            reason: format!("module {} {reason}", module.name),
        };
        let get = |role: Role| module.tensors.get(&role).cloned();
        let need = |role: Role, what: &str| get(role).ok_or_else(|| bad(format!("has no {what}")));
        let any = |roles: &[Role]| roles.iter().any(|role| module.tensors.contains_key(role));
        let product = |[up, down]: [Role; 2], [up_name, down_name]: [&str; 2], core, up_transposed| {
            let (up, down) = (need(up, up_name)?, need(down, down_name)?);
            Ok::<_, Error>(Product { up, up_transposed, core, down })
        };
        let mut terms = Vec::new();
        if any(&[Role::Up, Role::Down, Role::Mid]) {
            let names = ["up matrix", "down matrix"];
            terms.push(Term::Product(product([Role::Up, Role::Down], names, get(Role::Mid), false)?));
        }
        let hada = |index: u8| [Role::HadaA(index), Role::HadaB(index)];
        if any(&[hada(0), hada(1), [Role::HadaCore(0), Role::HadaCore(1)]].concat()) {
            let cores = [get(Role::HadaCore(0)), get(Role::HadaCore(1))];
            if cores[0].is_some() != cores[1].is_some() {
                return Err(bad("has one of hada_t1 and hada_t2, expected both or none".to_owned()));
            }
            let names = [["hada_w1_a", "hada_w1_b"], ["hada_w2_a", "hada_w2_b"]];
            let [first, second] = cores;
            let transposed = first.is_some();
            terms.push(Term::Hadamard([
                product(hada(0), names[0], first, transposed)?,
                product(hada(1), names[1], second, transposed)?,
            ]));
        }
        let kron = |index: u8| [Role::Kron(index), Role::KronA(index), Role::KronB(index)];
        if any(&[&kron(0)[..], &kron(1), &[Role::KronCore]].concat()) {
            let factor = |index: u8, names: [&str; 2], core: Option<String>| {
                let [whole, a, b] = kron(index);
                if let Some(name) = get(whole) {
                    return match any(&[a, b]) {
                        false => Ok(Factor::Whole(name)),
                        true => Err(bad(format!("has {name} both as a whole and as a product"))),
                    };
                }
                let transposed = core.is_some();
                product([a, b], names, core, transposed).map(Factor::Product)
            };
            terms.push(Term::Kronecker([
                factor(0, ["lokr_w1 or lokr_w1_a", "lokr_w1_b"], None)?,
                factor(1, ["lokr_w2 or lokr_w2_a", "lokr_w2_b"], get(Role::KronCore))?,
            ]));
        }
        terms.extend(get(Role::Diff).map(Term::Difference));
        terms.extend(get(Role::Vector).map(|name| Term::Vector { name, on_input: module.on_input }));
        match terms.len() {
            0 | 1 => Ok(terms.pop()),
            count => Err(bad(format!("has tensors of {count} kinds of adapters, expected one"))),
        }
    }

    /// What a term is multiplied by, apart from the caller's scale.
    fn factor(&self, module: &Module, term: &Term, rank: Option<usize>) -> Result<f32> {
        let by_alpha = match term {
            Term::Product(_) | Term::Hadamard(_) | Term::Kronecker(_) => self.scaling(module, rank),
            Term::Difference(_) | Term::Vector { .. } => 1.0,
        };
        let factor = by_alpha * module.scalar.unwrap_or(1.0);
        if factor.is_finite() {
            return Ok(factor);
        }
        let reason = format!("module {} is scaled by {factor} at rank {rank:?}", module.name);
        Err(Error::Config { file: self.file.name().to_owned(), reason })
    }

    /// Alpha over the rank. `rank` is that of the matrices; LoKr with two whole factors has none.
    fn scaling(&self, module: &Module, rank: Option<usize>) -> f32 {
        if let Some(alpha) = module.alpha {
            return match rank {
                // Kohya's scripts and LyCORIS: an alpha of 0 means the rank.
                Some(rank) if alpha != 0.0 => alpha / rank.max(1) as f32,
                _ => 1.0,
            };
        }
        let name = module.name.strip_prefix(PEFT).unwrap_or(&module.name);
        let scaling = |(prefix, config): &(&str, AdapterConfig)| config.scaling(name.strip_prefix(prefix)?, rank);
        self.configs.iter().find_map(scaling).unwrap_or(1.0)
    }
}

/// The first names and the number of the others.
fn shown(names: &[String]) -> String {
    let mut text = names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(3);
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

#[cfg(test)]
mod tests;
