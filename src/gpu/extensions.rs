//! Values of other modules that belong to a device or a recording, one of each type.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::lock::Lock;

type Value = Arc<dyn Any + Send + Sync>;

/// At most one value of each type, shared by all users of a device.
#[derive(Debug, Default)]
pub(super) struct Extensions(Lock<HashMap<TypeId, Value, FixedState>>);

impl Extensions {
    /// The value of type `T`, made by `T::default()` on the first call. Later calls allocate nothing.
    pub(super) fn get<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let id = TypeId::of::<T>();
        let value = self.0.lock().entry(id).or_insert_with(|| Arc::new(T::default())).clone();
        // Every value is stored under the id of its own type.
        value.downcast().unwrap_or_default()
    }
}

/// At most one value of each type, owned by a dry run.
#[derive(Debug, Default)]
pub(super) struct Traces(HashMap<TypeId, Box<dyn Any>>);

impl Traces {
    /// The value of type `T`, made by `T::default()` on the first call.
    pub(super) fn get_or_default<T: Any + Default>(&mut self) -> Option<&mut T> {
        self.0.entry(TypeId::of::<T>()).or_insert_with(|| Box::new(T::default())).downcast_mut()
    }

    /// The value of type `T`, if it was made.
    pub(super) fn get<T: Any>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{Extensions, Traces};

    #[test]
    fn each_type_has_one_value() {
        let extensions = Extensions::default();
        *extensions.get::<Mutex<u32>>().lock().expect("a number") = 7;
        assert_eq!(*extensions.get::<Mutex<u32>>().lock().expect("a number"), 7);
        assert_eq!(*extensions.get::<Mutex<u64>>().lock().expect("a number"), 0);
        let mut traces = Traces::default();
        assert!(traces.get::<Vec<u8>>().is_none());
        traces.get_or_default::<Vec<u8>>().expect("a list").push(1);
        assert_eq!(traces.get::<Vec<u8>>().expect("a list"), &[1]);
    }
}
