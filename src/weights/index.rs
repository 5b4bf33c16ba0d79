//! The index of a sharded checkpoint: `model.safetensors.index.json`.

use std::collections::BTreeMap;

use crate::{Error, Result, json};

/// Reads an index file: for each shard, the names of its tensors. Shards are files below the index's folder.
///
/// # Errors
/// [`Error::Malformed`] if it is not an index, or if it names something that is no file.
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
        let Some(file) = file_of(&shard) else {
            let reason = format!("tensor {name} is assigned to {shard:?}, which is not a file in the same folder");
            return Err(malformed(reason));
        };
        shards.entry(file).or_default().push(name);
    }
    Ok(shards)
}

/// The file of a shard relative to the index. Of a path elsewhere, on the machine where the index was written or in an
/// attack, only the last part counts.
fn file_of(shard: &str) -> Option<String> {
    let parts: Vec<&str> = shard.split(['/', '\\']).filter(|part| !matches!(*part, "" | ".")).collect();
    let elsewhere = shard.starts_with(['/', '\\']) || shard.contains(':') || parts.contains(&"..");
    let parts = if elsewhere { parts.get(parts.len().checked_sub(1)?..)? } else { &parts };
    let is_file = |part: &&str| !part.starts_with('.') && !part.contains([':', '\0']);
    (!parts.is_empty() && parts.iter().all(is_file)).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_stay_below_the_folder_of_their_index() {
        for (shard, file) in [
            ("a.safetensors", Some("a.safetensors")),
            ("./a.safetensors", Some("a.safetensors")),
            ("shards/a.safetensors", Some("shards/a.safetensors")),
            ("shards\\a.safetensors", Some("shards/a.safetensors")),
            ("/home/me/model/a.safetensors", Some("a.safetensors")),
            ("C:\\me\\model\\a.safetensors", Some("a.safetensors")),
            ("../model/a.safetensors", Some("a.safetensors")),
            ("shards/../../secret", Some("secret")),
            ("..", None),
            ("", None),
            ("/", None),
            ("a/.hidden", None),
            ("../.ssh", None),
            ("a\0b", None),
        ] {
            assert_eq!(file_of(shard).as_deref(), file, "{shard:?}");
        }
    }
}
