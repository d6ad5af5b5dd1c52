//! ONNX Runtime: finds its library, loads graphs, runs blocks. Only this module uses it.

use std::any::Any;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use datafusion_common::error::{DataFusionError, Result};
use datafusion_common::{exec_datafusion_err, exec_err, plan_err};
use half::f16;
use ort::AsPointer;
use ort::environment::Environment;
use ort::session::RunOptions;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorRef, TensorRefMut};

use crate::numbers::ToF32;
pub use element::Element;
use watch::Watch;
pub(crate) use weights::{Part, Weights};

mod element;
#[cfg(feature = "load-dynamic")]
mod library;
mod watch;
mod weights;

/// Longest time to load a graph, and to run one block of at most [`PROBE_ROWS`](super::contract::PROBE_ROWS) rows at
/// registration. A slower graph is refused.
const REGISTRATION_DEADLINE: Duration = Duration::from_secs(60);

/// Longest time of a run in a query …
const RUN_DEADLINE: Duration = Duration::from_secs(30);
/// … and as much more for each 16 rows.
const RUN_DEADLINE_EACH: Duration = Duration::from_secs(2);

/// The ONNX Runtime in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Path of its library; none if it is linked in.
    pub library: Option<PathBuf>,
    /// Version, commit and build flags, as it reports them.
    pub build: String,
    /// Devices (execution providers) of this build of aefusion.
    pub devices: Vec<String>,
}

/// Loads ONNX Runtime at the first call, and returns its path and version.
///
/// # Errors
/// An execution error if it is not found, with all searched folders and the command to install it.
pub fn runtime_info() -> Result<RuntimeInfo> {
    let loaded = loaded()?;
    Ok(RuntimeInfo { library: loaded.library.clone(), build: ort::info().to_owned(), devices: vec!["cpu".to_owned()] })
}

struct Loaded {
    environment: Environment,
    library: Option<PathBuf>,
}

fn loaded() -> Result<&'static Loaded> {
    static LOADED: OnceLock<std::result::Result<Loaded, Arc<DataFusionError>>> = OnceLock::new();
    LOADED.get_or_init(|| load().map_err(Arc::new)).as_ref().map_err(|e| DataFusionError::Shared(Arc::clone(e)))
}

fn load() -> Result<Loaded> {
    #[cfg(feature = "load-dynamic")]
    let (builder, library) = library::open().map(|(builder, path)| (builder, Some(path)))?;
    #[cfg(not(feature = "load-dynamic"))]
    let (builder, library) = (ort::init(), None);
    let environment = builder
        .with_name("aefusion")
        .with_telemetry(false)
        .with_logger(Arc::new(|_, category: &str, _: &str, place: &str, message: &str| {
            log::debug!(target: "onnxruntime", "{category} {place}: {message}");
        }))
        .build()
        .map_err(|e| external(e).context("ONNX Runtime could not be started"))?;
    Ok(Loaded { environment, library })
}

fn external(error: ort::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

static TIME_IN_RUNS: AtomicU64 = AtomicU64::new(0);

/// Time of this process in runs of ONNX Runtime, summed over threads.
pub fn time_in_runs() -> Duration {
    Duration::from_nanos(TIME_IN_RUNS.load(Ordering::Relaxed))
}

/// An input tensor, row-major.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names say it")]
pub(crate) enum Input<'a> {
    Float16(&'a [f16]),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    Int8(&'a [i8]),
    Int16(&'a [i16]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    UInt8(&'a [u8]),
    UInt16(&'a [u16]),
    UInt32(&'a [u32]),
    UInt64(&'a [u64]),
    Bool(&'a [bool]),
    String(&'a [String]),
}

/// An output tensor, row-major. The slice has exactly the size of the tensor.
#[derive(Debug)]
pub(crate) enum Output<'a> {
    /// Written in place.
    Float32(&'a mut [f32]),
    /// Written in place.
    Float64(&'a mut [f64]),
    /// Any other type is converted.
    Converted(&'a mut [f32]),
}

/// Element type and shape, rows first, of a computed tensor; none if it is no tensor of a known type.
pub(crate) type Observed = Option<(Element, Vec<i64>)>;

/// The purpose of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To look at the tensors once; not optimised.
    Probe,
    /// To score rows.
    Score,
}

/// A loaded graph. One thread runs a session at a time (`&mut`); several sessions of a graph run in parallel.
#[derive(Debug)]
pub(crate) struct Session {
    session: ort::session::Session,
    watch: Watch,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
    /// The memory of shared weights, freed after the session.
    _weights: Option<Arc<Weights>>,
}

impl Session {
    /// Loads a graph that one thread runs.
    ///
    /// # Errors
    /// A planning error if ONNX Runtime refuses it.
    pub(crate) fn load(graph: &[u8], purpose: Purpose) -> Result<Self> {
        Self::load_sharing(graph, purpose, None)
    }

    fn load_sharing(graph: &[u8], purpose: Purpose, part: Option<&Part>) -> Result<Self> {
        let builder = SessionBuilder::new(&loaded()?.environment).map_err(external)?;
        let mut builder = configure(builder, purpose)?;
        if let Some(part) = part {
            builder = part.configure(builder, purpose)?;
        }
        let canceler = builder.canceler();
        let load = || catch_unwind(AssertUnwindSafe(|| builder.commit_from_memory(graph)));
        let failed = |e: DataFusionError| e.context("ONNX Runtime cannot load the graph");
        let session = match with_deadline(move || canceler.cancel().is_ok(), load) {
            Ok(session) => session.map_err(|e| failed(external(e)))?,
            // `ort` panics over a negative dimension that ONNX Runtime infers for an output
            Err(panic) => return Err(failed(DataFusionError::Plan(panic_text(panic)))),
        };
        let names = |outlets: &[ort::value::Outlet]| -> Result<Vec<CString>> {
            let name = |outlet: &ort::value::Outlet| CString::new(outlet.name());
            outlets
                .iter()
                .map(name)
                .collect::<std::result::Result<_, _>>()
                .map_err(|e| DataFusionError::External(e.into()))
        };
        let weights = part.map(|part| Arc::clone(part.weights()));
        let (inputs, outputs) = (names(session.inputs())?, names(session.outputs())?);
        Ok(Self { inputs, outputs, watch: Watch::new()?, session, _weights: weights })
    }

    /// Runs one block and writes every output to its slice.
    ///
    /// # Shapes
    /// - `inputs`: data and shape (rows first) of every input, in the order of the graph
    /// - `outputs`: the same for every output
    ///
    /// # Errors
    /// An execution error if ONNX Runtime fails, or if an output has another shape than at registration. Also if the run
    /// takes longer than 30 s and 2 s for each 16 rows.
    pub(crate) fn run(&mut self, inputs: &[(Input<'_>, &[i64])], outputs: &mut [(Output<'_>, &[i64])]) -> Result<()> {
        let rows = inputs.iter().filter_map(|(_, shape)| u32::try_from(*shape.first()?).ok()).max().unwrap_or(1);
        let limit = RUN_DEADLINE + RUN_DEADLINE_EACH * rows.div_ceil(16);
        let values = inputs.iter().map(|(input, shape)| value(input, shape)).collect::<Result<Vec<_>>>()?;
        let mut in_place =
            outputs.iter_mut().map(|(output, shape)| prepared(output, shape)).collect::<Result<Vec<_>>>()?;
        let mut pointers: Vec<_> =
            in_place.iter_mut().map(|value| value.as_mut().map_or(ptr::null_mut(), Prepared::ptr)).collect();
        self.watch.run(limit, |options| self.run_pointers(&values, &mut pointers, options))?;
        drop(in_place);
        for ((output, shape), pointer) in outputs.iter_mut().zip(pointers) {
            if let Output::Converted(into) = output {
                let value = self.owned(pointer)?;
                if value.dtype().tensor_shape().map(|found| found.as_ref()) != Some(*shape) {
                    return exec_err!(
                        "expected a tensor of shape {shape:?} from ONNX Runtime, found {}",
                        value.dtype()
                    );
                }
                convert(&value, into)?;
            }
        }
        Ok(())
    }

    /// Runs once and returns types and shapes of the outputs.
    ///
    /// # Errors
    /// An execution error if the run fails, or takes longer than the deadline for registration.
    pub(crate) fn observe(&mut self, inputs: &[(Input<'_>, &[i64])]) -> Result<Vec<Observed>> {
        self.run_once(inputs, REGISTRATION_DEADLINE, |value| {
            let dtype = value.dtype();
            let element = dtype.tensor_type().and_then(Element::from_ort);
            Ok(element.zip(dtype.tensor_shape().map(|shape| shape.to_vec())))
        })
    }

    /// Runs once and returns the numbers of every output, row-major.
    ///
    /// # Errors
    /// As [`Session::observe`]; also if an output is no tensor of numbers.
    pub(crate) fn numbers(&mut self, inputs: &[(Input<'_>, &[i64])]) -> Result<Vec<Vec<f64>>> {
        self.run_once(inputs, REGISTRATION_DEADLINE, |value| numbers(&value))
    }

    fn run_once<T>(
        &mut self,
        inputs: &[(Input<'_>, &[i64])],
        limit: Duration,
        read: impl Fn(DynValue) -> Result<T>,
    ) -> Result<Vec<T>> {
        let values = inputs.iter().map(|(input, shape)| value(input, shape)).collect::<Result<Vec<_>>>()?;
        let mut pointers = vec![ptr::null_mut(); self.outputs.len()];
        self.watch.run(limit, |options| self.run_pointers(&values, &mut pointers, options))?;
        // take over every pointer before the first error returns: otherwise the values after it leak
        let results: Vec<Result<T>> = pointers.into_iter().map(|pointer| read(self.owned(pointer)?)).collect();
        results.into_iter().collect()
    }

    /// Takes ownership of a value that ONNX Runtime allocated.
    fn owned(&self, pointer: *mut ort::sys::OrtValue) -> Result<DynValue> {
        let Some(pointer) = ptr::NonNull::new(pointer) else {
            return exec_err!("ONNX Runtime left an output empty");
        };
        let mut kind = ort::sys::ONNXType::ONNX_TYPE_UNKNOWN;
        // SAFETY: `pointer` is a value of ONNX Runtime, and `kind` lives until the call returns. The status is not used
        // again.
        let status =
            unsafe { ort::Error::result_from_status((ort::api().GetValueType)(pointer.as_ptr(), &raw mut kind)) };
        status.map_err(external)?;
        if kind == ort::sys::ONNXType::ONNX_TYPE_UNKNOWN {
            // SAFETY: nothing else owns the value. `ort` panics over a value without a type, as `Optional` gives it.
            unsafe { (ort::api().ReleaseValue)(pointer.as_ptr()) };
            return exec_err!("ONNX Runtime left an output without a value");
        }
        // SAFETY: a run of this session allocated the value, with the allocator of the session, and nothing else owns
        // it.
        Ok(unsafe { DynValue::from_ptr(pointer, Some(self.session.allocator())) })
    }

    fn run_pointers(
        &self,
        inputs: &[DynInput<'_>],
        outputs: &mut [*mut ort::sys::OrtValue],
        options: &RunOptions,
    ) -> Result<()> {
        if inputs.len() != self.inputs.len() || outputs.len() != self.outputs.len() {
            return exec_err!(
                "the graph has {} inputs and {} outputs, found {} and {}",
                self.inputs.len(),
                self.outputs.len(),
                inputs.len(),
                outputs.len()
            );
        }
        let input_names: Vec<_> = self.inputs.iter().map(|name| name.as_ptr()).collect();
        let output_names: Vec<_> = self.outputs.iter().map(|name| name.as_ptr()).collect();
        let input_values: Vec<_> = inputs.iter().map(DynInput::ptr).collect();
        let start = Instant::now();
        // SAFETY: names and values live until the call returns, and their counts are those of the graph (checked
        // above). Every output is null (ONNX Runtime allocates it) or a tensor over a slice that stays mutably
        // borrowed. One thread at a time runs a session: all callers hold `&mut self`.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options.ptr(),
                input_names.as_ptr(),
                input_values.as_ptr(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            )
        };
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        TIME_IN_RUNS.fetch_add(nanos, Ordering::Relaxed);
        // SAFETY: `status` comes from the call above and is not used again.
        unsafe { ort::Error::result_from_status(status) }
            .map_err(|e| exec_datafusion_err!("ONNX Runtime failed to run the model: {e}"))
    }
}

fn configure(builder: SessionBuilder, purpose: Purpose) -> Result<SessionBuilder> {
    let level = match purpose {
        Purpose::Probe => GraphOptimizationLevel::Disable,
        Purpose::Score => GraphOptimizationLevel::All,
    };
    // the error holds the builder; this drops it at once
    let failed = |e: ort::Error<SessionBuilder>| external(e.into());
    let builder = builder.with_optimization_level(level).map_err(failed)?;
    let builder = builder.with_intra_threads(1).map_err(failed)?;
    let builder = builder.with_inter_threads(1).map_err(failed)?;
    let builder = builder.with_intra_op_spinning(false).map_err(failed)?;
    builder.with_inter_op_spinning(false).map_err(failed)
}

/// The text of a panic.
pub(crate) fn panic_text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other.downcast::<&str>().map_or_else(|_| String::new(), |text| (*text).to_owned()),
    }
}

/// Runs `work`, and calls `stop` if it takes longer than the deadline for registration.
fn with_deadline<T>(stop: impl FnOnce() -> bool + Send + 'static, work: impl FnOnce() -> T) -> T {
    let (done, wait) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if wait.recv_timeout(REGISTRATION_DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            stop();
        }
    });
    let result = work();
    drop(done);
    result
}

enum DynInput<'a> {
    Float16(TensorRef<'a, f16>),
    Float32(TensorRef<'a, f32>),
    Float64(TensorRef<'a, f64>),
    Int8(TensorRef<'a, i8>),
    Int16(TensorRef<'a, i16>),
    Int32(TensorRef<'a, i32>),
    Int64(TensorRef<'a, i64>),
    UInt8(TensorRef<'a, u8>),
    UInt16(TensorRef<'a, u16>),
    UInt32(TensorRef<'a, u32>),
    UInt64(TensorRef<'a, u64>),
    Bool(TensorRef<'a, bool>),
    String(Tensor<String>),
}

fn value<'a>(input: &Input<'a>, shape: &[i64]) -> Result<DynInput<'a>> {
    if let Input::String(texts) = input
        && texts.iter().any(|text| text.contains('\0'))
    {
        return exec_err!(
            "a text contains a zero byte, which ONNX Runtime does not accept; remove it with replace(text, chr(0), '')"
        );
    }
    macro_rules! borrow {
        ($($kind:ident),*) => {
            match input {
                $(Input::$kind(data) => TensorRef::from_array_view((shape.to_vec(), *data)).map(DynInput::$kind),)*
                Input::String(data) => Tensor::from_string_array((shape.to_vec(), *data)).map(DynInput::String),
            }
        };
    }
    borrow!(Float16, Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Bool).map_err(external)
}

impl DynInput<'_> {
    fn ptr(&self) -> *const ort::sys::OrtValue {
        macro_rules! ptr {
            ($($kind:ident),*) => { match self { $(Self::$kind(value) => value.ptr(),)* } };
        }
        ptr!(Float16, Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Bool, String)
    }
}

enum Prepared<'a> {
    Float32(TensorRefMut<'a, f32>),
    Float64(TensorRefMut<'a, f64>),
}

impl Prepared<'_> {
    fn ptr(&mut self) -> *mut ort::sys::OrtValue {
        match self {
            Self::Float32(value) => value.ptr().cast_mut(),
            Self::Float64(value) => value.ptr().cast_mut(),
        }
    }
}

fn prepared<'a>(output: &'a mut Output<'_>, shape: &[i64]) -> Result<Option<Prepared<'a>>> {
    let shape = shape.to_vec();
    match output {
        Output::Float32(data) => {
            TensorRefMut::from_array_view_mut((shape, &mut **data)).map(|value| Some(Prepared::Float32(value)))
        }
        Output::Float64(data) => {
            TensorRefMut::from_array_view_mut((shape, &mut **data)).map(|value| Some(Prepared::Float64(value)))
        }
        Output::Converted(_) => Ok(None),
    }
    .map_err(external)
}

fn convert(value: &DynValue, into: &mut [f32]) -> Result<()> {
    fn copy<T: PrimitiveTensorElementType + ToF32>(value: &DynValue, into: &mut [f32]) -> Result<()> {
        let (_, data) = value.try_extract_tensor::<T>().map_err(external)?;
        into.iter_mut().zip(data).for_each(|(to, from)| *to = from.to_f32());
        Ok(())
    }
    match value.dtype().tensor_type().and_then(Element::from_ort) {
        Some(Element::Float16) => copy::<f16>(value, into),
        Some(Element::Float32) => copy::<f32>(value, into),
        Some(Element::Float64) => copy::<f64>(value, into),
        Some(Element::Int8) => copy::<i8>(value, into),
        Some(Element::Int16) => copy::<i16>(value, into),
        Some(Element::Int32) => copy::<i32>(value, into),
        Some(Element::Int64) => copy::<i64>(value, into),
        Some(Element::UInt8) => copy::<u8>(value, into),
        Some(Element::UInt16) => copy::<u16>(value, into),
        Some(Element::UInt32) => copy::<u32>(value, into),
        Some(Element::Bool) => copy::<bool>(value, into),
        other => plan_err!("outputs of type {other:?} are not supported; export the model with float outputs"),
    }
}

/// The numbers of a tensor: those of `Float64` as they are, all others as [`convert`] gives them.
fn numbers(value: &DynValue) -> Result<Vec<f64>> {
    if value.dtype().tensor_type().and_then(Element::from_ort) == Some(Element::Float64) {
        return Ok(value.try_extract_tensor::<f64>().map_err(external)?.1.to_vec());
    }
    let n: usize = value
        .dtype()
        .tensor_shape()
        .map_or(0, |shape| shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).product());
    let mut converted = vec![0_f32; n];
    convert(value, &mut converted)?;
    Ok(converted.into_iter().map(f64::from).collect())
}
