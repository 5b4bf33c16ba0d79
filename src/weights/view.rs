//! Tensors under a prefix of their names, as a model's layers request them.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::rc::Rc;

use super::checkpoint::Checkpoint;
use super::row_order::RowOrder;
use super::stored_tensor::TensorInfo;
use crate::{Error, Result};

/// The tensors of a checkpoint under a prefix. Cheap to clone.
///
/// ```
/// # use std::rc::Rc; use mgm::weights::{checkpoint::Checkpoint, view::Weights};
/// # fn load(checkpoint: Rc<Checkpoint>) -> mgm::Result<()> {
/// let layer = Weights::new(checkpoint).pp("model").pp("layers").pp(3);
/// layer.expect_shape("input_layernorm.weight", &[2048])?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Weights {
    checkpoint: Rc<Checkpoint>,
    prefix: String,
}

impl Weights {
    /// All tensors of a checkpoint.
    pub fn new(checkpoint: Rc<Checkpoint>) -> Self {
        Self { checkpoint, prefix: String::new() }
    }

    /// The tensors under `part` (push prefix). Names start after `part` and a dot.
    #[must_use]
    pub fn pp(&self, part: impl Display) -> Self {
        Self { checkpoint: Rc::clone(&self.checkpoint), prefix: self.full_name(&part.to_string()) }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Rc<Checkpoint> {
        &self.checkpoint
    }

    /// The full name of a tensor, with the prefix.
    pub fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether there is a tensor with this name, or should be, in a shard that is missing.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.full_name(name))
    }

    /// All names under the prefix, without it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.checkpoint.names().filter_map(|name| match name.strip_prefix(self.prefix.as_str()) {
            Some(rest) if self.prefix.is_empty() => Some(rest),
            Some(rest) => rest.strip_prefix('.'),
            None => None,
        })
    }

    /// Element type and shape of a tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] with its full name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        let name = self.full_name(name);
        self.checkpoint.info(&name).ok_or_else(|| self.checkpoint.missing(&name))
    }

    /// A tensor's shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] with its full name.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// The shape of a tensor with `N` dimensions.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] with its full name; [`Error::WrongShape`] if it has another number of dimensions.
    pub fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let shape = self.shape(name)?;
        shape.try_into().map_err(|_| self.wrong_shape(name, shape, format!("{N} dimensions")))
    }

    /// Checks a tensor's shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] with its full name; [`Error::WrongShape`] if it is not `expected`.
    pub fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        let shape = self.shape(name)?;
        if shape == expected {
            Ok(())
        } else {
            Err(self.wrong_shape(name, shape, configured(expected, self.checkpoint.name())))
        }
    }

    fn wrong_shape(&self, name: &str, found: &[usize], expected: String) -> Error {
        let name = self.checkpoint.stored_name(&self.full_name(name)).to_owned();
        Error::WrongShape { name, found: found.to_vec(), expected }
    }

    /// Reads a whole tensor as `f32`, row-major.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows`].
    pub async fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.checkpoint.read(&self.full_name(name)).await
    }

    /// Reads rows along the first dimension as `f32`, row-major.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows`].
    pub async fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        self.checkpoint.read_rows(&self.full_name(name), rows).await
    }

    /// Reads the rows at positions `rows` of the tensor with its rows in `order`, as `f32`, row-major.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows_in`].
    pub async fn read_rows_in(&self, name: &str, rows: Range<usize>, order: RowOrder) -> Result<Vec<f32>> {
        self.checkpoint.read_rows_in(&self.full_name(name), rows, order).await
    }

    /// Reads the blocks of a quantised tensor: the rows at positions `rows` of the tensor with its rows in `order`.
    ///
    /// # Errors
    /// As [`Checkpoint::read_blocks`].
    pub async fn read_blocks(&self, name: &str, rows: Range<usize>, order: RowOrder) -> Result<Vec<u8>> {
        self.checkpoint.read_blocks(&self.full_name(name), rows, order).await
    }

    /// The number of different indices after `part`: 2 for `layers` with `layers.0.w`, `layers.0.b` and `layers.1.w`. A
    /// gap does not end the count, so that loading all indices reports what is missing.
    pub fn count(&self, part: impl Display) -> usize {
        let part = self.pp(part);
        let numbers = part.names().filter_map(|name| name.split('.').next()?.parse::<usize>().ok());
        numbers.collect::<BTreeSet<_>>().len()
    }
}

/// The shape that a configuration requires, for the error about a tensor of another shape in `origin`.
pub(super) fn configured(shape: &[usize], origin: &str) -> String {
    format!("{shape:?}; does the configuration belong to the weights in {origin}?")
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::{MODEL_FILES, tests::file};
    use super::*;
    use crate::io::MemoryFolder;

    #[test]
    fn names_count_from_the_prefix() {
        let bytes = file(&[
            ("m.layers.0.w", &[2, 1], &[1.0, 2.0]),
            ("m.layers.1.w", &[1], &[3.0]),
            ("m.layers.3.w", &[1], &[4.0]),
            ("m.layersomething", &[1], &[5.0]),
        ]);
        let folder = MemoryFolder::new([("model.safetensors", bytes)]);
        let weights = Weights::new(Rc::new(pollster::block_on(Checkpoint::open(&folder, MODEL_FILES)).unwrap()));
        assert_eq!((weights.count("m.layers"), weights.pp("m").count("layers"), weights.count("n")), (3, 3, 0));
        let layers = weights.pp("m").pp("layers");
        assert_eq!(layers.names().collect::<Vec<_>>(), ["0.w", "1.w", "3.w"]);
        let layer = layers.pp(0);
        assert_eq!(pollster::block_on(layer.read("w")).unwrap(), [1.0, 2.0]);
        assert_eq!(pollster::block_on(layer.read_rows("w", 1..2)).unwrap(), [2.0]);
        assert!(layer.contains("w") && !layer.contains("v"));
        assert_eq!(layer.shape("w").unwrap(), [2, 1]);
        assert_eq!(layer.dims("w").unwrap(), [2, 1]);
        assert!(layer.expect_shape("w", &[2, 1]).is_ok());
        let name = "m.layers.0.w".to_owned();
        let expected = configured(&[1, 2], weights.checkpoint().name());
        let error = Error::WrongShape { name: name.clone(), found: vec![2, 1], expected };
        assert_eq!(layer.expect_shape("w", &[1, 2]), Err(error));
        assert_eq!(
            layer.dims::<3>("w"),
            Err(Error::WrongShape { name, found: vec![2, 1], expected: "3 dimensions".into() })
        );
        assert!(matches!(layer.info("v"), Err(Error::MissingTensor { name, .. }) if name == "m.layers.0.v"));
    }
}
