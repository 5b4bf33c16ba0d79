//! Converts a model on a server to a bundle, shard by shard, as `mgm pack` does with files on disk.

use std::rc::Rc;

use js_sys::{Function, Map, Uint8Array};
use mgm::io::Folder;
use mgm::session::{conversation_template, own_template};
use mgm::tensor::Precision;
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::bundle::{BundleFile, SHARD_BYTES};
use mgm::weights::bundle_layout::{BundleShard, Layout};
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::{MgmCheckpoint, TowerOptions};
use mgm::weights::report::PartReport;
use mgm::weights::repository;
use mgm::weights::sdxl::{OpenOptions, SdxlCheckpoint};
use mgm::{Error, Result};
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::{bad_request, blob_source, remote_source, to_js, to_json};

/// Which of a repository's files make a model: see [`repository::model_files`].
#[wasm_bindgen(js_name = modelFiles)]
pub fn model_files(repo: &str, names: Vec<String>) -> Result<Vec<String>, JsValue> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let files = repository::model_files(repo, &names).map_err(to_js)?;
    Ok(files.into_iter().map(str::to_owned).collect())
}

/// See `Tower` of `ts/hub.ts`.
#[derive(Serialize)]
struct Tower {
    repo: &'static str,
    folder: String,
    formats: &'static [&'static str],
}

/// The towers that a checkpoint's `config.json` names, as JSON.
#[wasm_bindgen(js_name = towersOf)]
pub fn towers_of(file: &str, config: &[u8]) -> Result<String, JsValue> {
    let towers = repository::towers(file, config).map_err(to_js)?;
    let tower = |tower: repository::Tower| Tower { repo: tower.repo, folder: tower.folder, formats: tower.formats };
    to_json(&towers.into_iter().map(tower).collect::<Vec<_>>())
}

/// The files of a tower among those of its repository, with weights in the first of these formats.
#[wasm_bindgen(js_name = towerFiles)]
pub fn tower_files(names: Vec<String>, formats: Vec<String>) -> Vec<String> {
    let [names, formats] = [&names, &formats].map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
    repository::folder_files(&names, "", &formats).into_iter().map(str::to_owned).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PlanRequest {
    /// The model's name in the bundle.
    name: String,
    precision: Option<Precision>,
}

/// See `ConversionPlan` of `ts/import-model.ts`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Plan {
    precision: String,
    image_generation: bool,
    files: Vec<PlannedFile>,
    shards: Vec<PlannedShard>,
}

#[derive(Serialize)]
struct PlannedFile {
    file: String,
    bytes: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlannedShard {
    file: String,
    part: &'static str,
    bytes: u64,
    source_bytes: u64,
}

/// The files of a finished conversion.
#[derive(Deserialize)]
struct Written {
    files: Vec<BundleFile>,
    shards: Vec<BundleFile>,
}

/// A bundle to be written.
#[wasm_bindgen]
pub struct Conversion {
    layout: Layout,
    image_generation: bool,
}

#[wasm_bindgen]
impl Conversion {
    /// Plans the conversion of a model from a `Map` of paths to `RemoteFile`s. Reads configurations and headers.
    pub async fn plan(files: Map, request: String) -> Result<Conversion, JsValue> {
        let request: PlanRequest = serde_json::from_str(&request).map_err(bad_request)?;
        plan(&files, &request).await.map_err(to_js)
    }

    /// The bundle's files, as JSON.
    pub fn description(&self) -> Result<String, JsValue> {
        let count = self.layout.shards.len();
        let shards = self.layout.shards.iter().enumerate();
        to_json(&Plan {
            precision: self.layout.manifest.precision.clone(),
            image_generation: self.image_generation,
            files: self
                .layout
                .files
                .iter()
                .map(|(file, bytes)| PlannedFile { file: file.clone(), bytes: bytes.len() })
                .collect(),
            shards: shards
                .map(|(index, shard)| PlannedShard {
                    file: BundleShard::file(index, count),
                    part: shard.part,
                    bytes: shard.bytes(),
                    source_bytes: shard.source_bytes(),
                })
                .collect(),
        })
    }

    /// The content of a copied file.
    pub fn file(&self, index: usize) -> Option<Vec<u8>> {
        self.layout.files.get(index).map(|(_, bytes)| bytes.clone())
    }

    /// Passes a shard's bytes to `write(bytes)`, in order and in chunks of a few MiB. What `write` throws ends this.
    pub async fn shard(&self, index: usize, write: Function) -> Result<(), JsValue> {
        let shard = self.layout.shards.get(index).ok_or_else(|| JsValue::from_str("there is no such shard"))?;
        let pass = |bytes: &[u8]| write.call1(&JsValue::NULL, &Uint8Array::from(bytes)).map(drop).map_err(Failure);
        let all = async {
            pass(&shard.header()?)?;
            shard.write(pass).await
        };
        all.await.map_err(|Failure(error)| error)
    }

    /// The manifest of the bundle, whose files were written as `written` says.
    pub fn manifest(&self, written: String) -> Result<String, JsValue> {
        let written: Written = serde_json::from_str(&written).map_err(bad_request)?;
        let mut manifest = self.layout.manifest.clone();
        (manifest.files, manifest.shards) = (written.files, written.shards);
        to_json(&manifest)
    }
}

/// What a conversion ended with, as JavaScript sees it.
struct Failure(JsValue);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(to_js(error))
    }
}

async fn plan(files: &Map, request: &PlanRequest) -> Result<Conversion> {
    let (paths, root) = (blob_source::paths(files), remote_source::folder(files));
    if let [path] = paths.as_slice()
        && path.ends_with(".gguf")
    {
        let source = root.open(path).await?.ok_or_else(|| Error::Internal("the file is gone".to_owned()))?;
        let model = GgufModel::open(Rc::clone(&source)).await?;
        let layout = Layout::from_gguf(&source, &model, &request.name, SHARD_BYTES).await?;
        return Ok(Conversion { layout, image_generation: false });
    }
    let folder = root.child(blob_source::shallowest(&paths, &["config.json", "model_index.json"]));
    if SdxlCheckpoint::is_in(&*folder).await? {
        let precision = request.precision.unwrap_or(Precision::F16);
        if precision == Precision::Q4 {
            let reason = "precision is q4, expected f32, f16 or q8 for an image model".to_owned();
            return Err(Error::InvalidArgument(reason));
        }
        let checkpoint =
            SdxlCheckpoint::open(Rc::clone(&folder), &OpenOptions::default().with_prefer_f16(true)).await?;
        checkpoint.check()?;
        let layout = Layout::from_diffusion(&folder, &checkpoint, &request.name, precision, SHARD_BYTES).await?;
        return Ok(Conversion { layout, image_generation: true });
    }
    let checkpoint = MgmCheckpoint::open(Rc::clone(&folder), TowerOptions::default()).await?;
    checkpoint.report().iter().try_for_each(PartReport::check)?;
    // In the bundle, too, a template of the model's own is in its files.
    let template = match own_template(&checkpoint).await? {
        Some(_) => None,
        None => Some(conversation_template(&checkpoint, &Tokenizer::load(&*folder).await?)?.name()),
    };
    let precision = request.precision.unwrap_or(Precision::Q4);
    let layout = Layout::from_checkpoint(&checkpoint, &request.name, precision, template, SHARD_BYTES).await?;
    Ok(Conversion { layout, image_generation: false })
}
