//! Work on all cores: on rayon's threads, or on the only thread of a browser.

/// Calls `work` with every item, in any order.
pub(crate) fn for_each<T: Send>(items: impl IntoIterator<Item = T>, work: impl Fn(T) + Send + Sync) {
    #[cfg(not(target_arch = "wasm32"))]
    {
        use rayon::iter::{IntoParallelIterator, ParallelIterator};
        let items: Vec<T> = items.into_iter().collect();
        // Handing work to the only thread would take two switches.
        if items.len() > 1 && rayon::current_num_threads() > 1 {
            return items.into_par_iter().for_each(work);
        }
        items.into_iter().for_each(work);
    }
    #[cfg(target_arch = "wasm32")]
    items.into_iter().for_each(work);
}
