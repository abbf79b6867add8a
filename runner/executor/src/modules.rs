//! Compiled modules in the executor's memory: loaded once, linked, ready to be instantiated in a child.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use rustix::fs::fstat;
use wasmtime::component::{self, Component};
use wasmtime::{Engine, InstancePre, Linker, Module};
use wasmtime_wasi::{p2, p3};

use crate::config::{self, Life, Variant};
use crate::state::State;
use crate::{http, imports, network, wasi_01};

/// Modules kept loaded: each holds a descriptor and address space, its code is shared page cache. Loading one again costs
/// 30 µs to a few milliseconds.
const MAX_LOADED: usize = 64;

/// What a component of WASI 0.3 exports: a command, and a server.
const RUN_03: &str = "wasi:cli/run@0.3.";
const SERVES_03: &str = "wasi:http/handler@0.3.";

/// A module that is ready to run.
pub struct Loaded {
    pub program: Program,
    pub engine: Engine,
    /// wasmtime keeps this descriptor and maps memory images from it at every instantiation: it must stay open, under this
    /// number, wherever the module runs (facts: executor.md, trap 1).
    pub descriptor: RawFd,
}

/// What a module is.
pub enum Program {
    Command(Command),
    Server(http::Handler),
}

/// By which way a command is run.
pub enum Command {
    /// A core module with `_start`.
    Wasi01(InstancePre<State>),
    Wasi02(p2::bindings::CommandPre<State>),
    Wasi03(p3::bindings::CommandPre<State>),
}

/// What names a loaded module: the same is the same code.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    module_key: String,
    kind: String,
    variant: Variant,
}

/// Loads modules, and keeps those that were used last.
pub struct Modules {
    plain: Runtime,
    fuel: Runtime,
    plain_servers: Option<Servers>,
    fuel_servers: Option<Servers>,
    wasi_03: bool,
    /// Of servers: their instances' memory is a pool's.
    pooling: bool,
    /// The one used last is the last.
    loaded: Vec<(Key, Rc<Loaded>)>,
    /// How often a module was loaded, or was tried to be: what else that did to this process has to be checked.
    pub loads: u64,
}

/// An engine, and what its modules are linked with: made when they are used for the first time.
struct Runtime {
    engine: Engine,
    core: Option<Linker<State>>,
    component: Option<component::Linker<State>>,
}

/// The same for servers, whose code is made for another engine.
struct Servers {
    engine: Engine,
    linker: component::Linker<http::State>,
    wasi_03: bool,
}

impl Modules {
    pub fn new(wasi_03: bool, pooling: bool) -> wasmtime::Result<Modules> {
        let runtime = |variant| -> wasmtime::Result<Runtime> {
            Ok(Runtime {
                engine: config::engine(variant, Life::Command, wasi_03)?,
                core: None,
                component: None,
            })
        };
        Ok(Modules {
            plain: runtime(Variant::Plain)?,
            fuel: runtime(Variant::Fuel)?,
            plain_servers: None,
            fuel_servers: None,
            wasi_03,
            pooling,
            loaded: Vec::new(),
            loads: 0,
        })
    }

    /// The module, loaded from the descriptor if it isn't yet; `before_load` is called then. The error is for the user.
    ///
    /// What is loaded is native code and trusted: the supervisor gives only what its own compiler made.
    pub fn get(
        &mut self,
        module_key: String,
        kind: String,
        variant: &str,
        module: OwnedFd,
        before_load: impl FnOnce(),
    ) -> Result<Rc<Loaded>, String> {
        let variant = Variant::parse(variant).ok_or_else(|| format!("there is no variant {variant:?} of modules"))?;
        let key = Key {
            module_key,
            kind,
            variant,
        };
        if let Some(place) = self.loaded.iter().position(|(known, _)| *known == key) {
            let entry = self.loaded.remove(place);
            self.loaded.push(entry);
        } else {
            self.loads += 1;
            before_load();
            let loaded = self.load(&key, module)?;
            if self.loaded.len() == MAX_LOADED {
                self.loaded.remove(0);
            }
            self.loaded.push((key, Rc::new(loaded)));
        }
        Ok(Rc::clone(&self.loaded[self.loaded.len() - 1].1))
    }

    fn load(&mut self, key: &Key, module: OwnedFd) -> Result<Loaded, String> {
        let wasi_03 = self.wasi_03;
        if key.kind == "http" {
            let servers = match key.variant {
                Variant::Plain => &mut self.plain_servers,
                Variant::Fuel => &mut self.fuel_servers,
            };
            let told = |error: wasmtime::Error| format!("{error:#}");
            return match servers {
                Some(servers) => servers,
                None => servers.insert(Servers::new(key.variant, wasi_03, self.pooling).map_err(told)?),
            }
            .load(module);
        }
        let runtime = match key.variant {
            Variant::Plain => &mut self.plain,
            Variant::Fuel => &mut self.fuel,
        };
        match key.kind.as_str() {
            "core" => runtime.load_core(module).map_err(|error| format!("{error:#}")),
            "component" => runtime.load_component(module, wasi_03),
            kind => Err(format!("there are no modules of kind {kind:?}")),
        }
    }
}

impl Runtime {
    fn load_core(&mut self, module: OwnedFd) -> wasmtime::Result<Loaded> {
        if self.core.is_none() {
            self.core = Some(wasi_01::linker(&self.engine)?);
        }
        let linker = self.core.as_ref().expect("made above");
        let file = File::from(module);
        let descriptor = file.as_raw_fd();
        // SAFETY: the supervisor gives only files that its compiler made and whose checksum it has compared; they are
        // written once, read-only and never changed while they exist.
        let module = unsafe { Module::deserialize_open_file(&self.engine, file)? };
        // Else each guest would.
        module.initialize_copy_on_write_image()?;
        let command = Command::Wasi01(linker.instantiate_pre(&module)?);
        Ok(Loaded {
            program: Program::Command(command),
            engine: self.engine.clone(),
            descriptor,
        })
    }

    fn load_component(&mut self, module: OwnedFd, wasi_03: bool) -> Result<Loaded, String> {
        let told = |error: wasmtime::Error| format!("{error:#}");
        if self.component.is_none() {
            self.component = Some(component_linker(&self.engine, wasi_03).map_err(told)?);
        }
        let linker = self.component.as_ref().expect("made above");
        let (component, descriptor) = open_component(&self.engine, module)?;
        check_imports(&component, &self.engine, wasi_03)?;
        let is_03 = wasi_03 && exports(&component, &self.engine, RUN_03);
        let instance = linker.instantiate_pre(&component).map_err(told)?;
        let command = if is_03 {
            Command::Wasi03(p3::bindings::CommandPre::new(instance).map_err(told)?)
        } else {
            Command::Wasi02(p2::bindings::CommandPre::new(instance).map_err(told)?)
        };
        Ok(Loaded {
            program: Program::Command(command),
            engine: self.engine.clone(),
            descriptor,
        })
    }
}

impl Servers {
    fn new(variant: Variant, wasi_03: bool, pooling: bool) -> wasmtime::Result<Servers> {
        let engine = if pooling {
            config::pooling_engine(variant, wasi_03)?
        } else {
            config::engine(variant, Life::Server, wasi_03)?
        };
        let linker = http::linker(&engine, wasi_03)?;
        Ok(Servers {
            engine,
            linker,
            wasi_03,
        })
    }

    fn load(&self, module: OwnedFd) -> Result<Loaded, String> {
        let told = |error: wasmtime::Error| format!("{error:#}");
        let (component, descriptor) = open_component(&self.engine, module)?;
        check_imports(&component, &self.engine, self.wasi_03)?;
        let is_03 = self.wasi_03 && exports(&component, &self.engine, SERVES_03);
        let instance = self.linker.instantiate_pre(&component).map_err(told)?;
        Ok(Loaded {
            program: Program::Server(http::Handler::new(instance, is_03).map_err(told)?),
            engine: self.engine.clone(),
            descriptor,
        })
    }
}

/// A compiled component, and the descriptor that it needs.
fn open_component(engine: &Engine, module: OwnedFd) -> Result<(Component, RawFd), String> {
    // A component is loaded by name only, and wasmtime opens the file itself: under the lowest number that is free.
    let descriptor = next_descriptor(module.as_fd())?;
    let path = format!("/proc/self/fd/{}", module.as_raw_fd());
    // SAFETY: as in `load_core`.
    let component = unsafe { Component::deserialize_file(engine, path).map_err(|error| format!("{error:#}"))? };
    check_same_file(descriptor, module.as_fd())?;
    // Else each guest would.
    component
        .initialize_copy_on_write_image()
        .map_err(|error| format!("{error:#}"))?;
    Ok((component, descriptor))
}

fn check_imports(component: &Component, engine: &Engine, wasi_03: bool) -> Result<(), String> {
    let component_type = component.component_type();
    let names: Vec<_> = component_type.imports(engine).map(|(name, _)| name).collect();
    imports::missing(&names, wasi_03).map_or(Ok(()), Err)
}

/// Whether a component exports an interface, by the beginning of its name.
fn exports(component: &Component, engine: &Engine, prefix: &str) -> bool {
    let component_type = component.component_type();
    component_type.exports(engine).any(|(name, _)| name.starts_with(prefix))
}

/// WASI 0.2 with outbound HTTP, and 0.3 where it is wanted. What reaches out is there and gives what is granted.
fn component_linker(engine: &Engine, wasi_03: bool) -> wasmtime::Result<component::Linker<State>> {
    let mut linker = component::Linker::new(engine);
    p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if wasi_03 {
        p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    network::add_to_linker(&mut linker, wasi_03)?;
    Ok(linker)
}

/// The number that the next descriptor will have.
fn next_descriptor(any: BorrowedFd) -> Result<RawFd, String> {
    let copy = any
        .try_clone_to_owned()
        .map_err(|error| format!("no descriptor left: {error}"))?;
    Ok(copy.as_raw_fd())
}

/// Make sure that a number is a descriptor of this file.
fn check_same_file(number: RawFd, file: BorrowedFd) -> Result<(), String> {
    // SAFETY: borrowed for the one call below, which fails if there is no such descriptor.
    let kept = unsafe { BorrowedFd::borrow_raw(number) };
    match (fstat(kept), fstat(file)) {
        (Ok(kept), Ok(file)) if (kept.st_dev, kept.st_ino) == (file.st_dev, file.st_ino) => Ok(()),
        _ => Err("wasmtime did not open the module as it was expected to".into()),
    }
}
