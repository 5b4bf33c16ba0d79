//! The index of a sharded checkpoint: `model.safetensors.index.json`.

use std::collections::BTreeMap;

use crate::{Error, Result, json};

/// Reads an index file: for each shard, the names of its tensors.
///
/// # Errors
/// [`Error::Malformed`] if it is not an index, or if it names a file outside its folder.
pub fn parse_index(file: &str, bytes: &[u8]) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let malformed = |reason| Error::Malformed { file: file.to_owned(), offset: 0, reason };
    let index: Index =
        json::from_slice(bytes).map_err(|error| malformed(format!("not an index of tensors: {error}")))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shard) in index.weight_map {
        // An index names files in its own folder; a path elsewhere is a mistake or an attack.
        if shard.is_empty() || shard.contains(['/', '\\', ':', '\0']) || shard.starts_with('.') {
            let reason = format!("tensor {name} is assigned to {shard:?}, which is not a file in the same folder");
            return Err(malformed(reason));
        }
        shards.entry(shard).or_default().push(name);
    }
    Ok(shards)
}
