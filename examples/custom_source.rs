//! Weights from a source of your own: here a folder that counts the bytes read. Archives, object stores and encrypted
//! files work the same way. `cargo run --release --example custom_source`

use std::cell::Cell;
use std::rc::Rc;

use mgm::io::{DiskFolder, LocalFuture};
use mgm::session::LoadOptions;
use mgm::weights::model_files::ModelFiles;
use mgm::{ByteSource, Folder, Gpu, Model, Result};

struct Counting<T: ?Sized>(Rc<T>, Rc<Cell<u64>>);

impl Folder for Counting<dyn Folder> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<Rc<dyn ByteSource>>>> {
        Box::pin(async move {
            let source = self.0.open(file).await?;
            Ok(source.map(|source| Rc::new(Counting(source, self.1.clone())) as Rc<dyn ByteSource>))
        })
    }

    fn child(&self, name: &str) -> Rc<dyn Folder> {
        Rc::new(Counting(self.0.child(name), self.1.clone()))
    }
}

impl ByteSource for Counting<dyn ByteSource> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>> {
        self.1.set(self.1.get() + buffer.len() as u64);
        self.0.read(offset, buffer)
    }
}

fn main() -> Result<()> {
    pollster::block_on(async {
        let read = Rc::new(Cell::new(0));
        let folder = Counting(Rc::new(DiskFolder::new("models/pocket")) as Rc<dyn Folder>, read.clone());
        let files = ModelFiles::open(Rc::new(folder), Default::default()).await?;
        println!("{} bytes read to open the model", read.get());
        let gpu = Gpu::open(&Default::default()).await?;
        let model = Model::open(&gpu, &files, &LoadOptions::as_stored(&files)).await?;
        println!("{} bytes read to load it", read.get());
        println!("{}", model.chat().ask("What can you see?").max_new_tokens(64).await?);
        Ok(())
    })
}
