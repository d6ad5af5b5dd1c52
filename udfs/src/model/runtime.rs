//! ONNX Runtime: finding its library, loading graphs, running blocks. The only file that names it.

use std::ffi::CString;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use datafusion::common::{exec_datafusion_err, exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use half::f16;
use ort::AsPointer;
use ort::environment::Environment;
use ort::session::RunOptions;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorElementType, TensorRef, TensorRefMut};

use super::onnx::proto::{ModelProto, TensorProto};
use crate::narrow::ToF32;

#[cfg(feature = "load-dynamic")]
mod library;

/// A graph that loads, or runs one block of at most [`PROBE_ROWS`](super::contract::PROBE_ROWS) rows, for longer than
/// this at registration is refused.
const REGISTRATION_DEADLINE: Duration = Duration::from_secs(60);

/// The ONNX Runtime in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Where its library was found; none when it is linked in.
    pub library: Option<PathBuf>,
    /// Version, commit and build flags, as it reports them.
    pub build: String,
    /// Execution providers (devices) that this build of aefusion can ask for.
    pub devices: Vec<String>,
}

/// Loads ONNX Runtime, if that has not been done yet, and tells which one it is.
///
/// # Errors
/// An execution error that names every place that was searched and the command that mends it.
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

/// Time that this process has spent in runs of ONNX Runtime so far, summed over threads.
pub fn time_in_runs() -> Duration {
    Duration::from_nanos(TIME_IN_RUNS.load(Ordering::Relaxed))
}

/// Type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Element {
    Float16,
    Float32,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Bool,
    String,
}

impl Element {
    /// From the number in the ONNX schema (`TensorProto.DataType`).
    pub(crate) fn from_onnx(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Float32,
            2 => Self::UInt8,
            3 => Self::Int8,
            4 => Self::UInt16,
            5 => Self::Int16,
            6 => Self::Int32,
            7 => Self::Int64,
            8 => Self::String,
            9 => Self::Bool,
            10 => Self::Float16,
            11 => Self::Float64,
            12 => Self::UInt32,
            13 => Self::UInt64,
            _ => return None,
        })
    }

    /// Its number in the ONNX schema.
    pub(crate) fn to_onnx(self) -> i32 {
        (1..=13).find(|number| Self::from_onnx(*number) == Some(self)).unwrap_or_default()
    }

    fn from_ort(element: TensorElementType) -> Option<Self> {
        Some(match element {
            TensorElementType::Float16 => Self::Float16,
            TensorElementType::Float32 => Self::Float32,
            TensorElementType::Float64 => Self::Float64,
            TensorElementType::Int8 => Self::Int8,
            TensorElementType::Int16 => Self::Int16,
            TensorElementType::Int32 => Self::Int32,
            TensorElementType::Int64 => Self::Int64,
            TensorElementType::Uint8 => Self::UInt8,
            TensorElementType::Uint16 => Self::UInt16,
            TensorElementType::Uint32 => Self::UInt32,
            TensorElementType::Uint64 => Self::UInt64,
            TensorElementType::Bool => Self::Bool,
            TensorElementType::String => Self::String,
            _ => return None,
        })
    }

    /// Size of one in a tensor; of a string, of what points to it.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Int8 | Self::UInt8 | Self::Bool => 1,
            Self::Float16 | Self::Int16 | Self::UInt16 => 2,
            Self::Float32 | Self::Int32 | Self::UInt32 => 4,
            Self::Float64 | Self::Int64 | Self::UInt64 => 8,
            Self::String => size_of::<String>(),
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float16 | Self::Float32 | Self::Float64)
    }
}

/// A tensor that goes in, row-major.
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

/// A tensor that comes out, row-major; the slice has exactly its size.
#[derive(Debug)]
pub(crate) enum Output<'a> {
    /// Written in place.
    Float32(&'a mut [f32]),
    /// Written in place.
    Float64(&'a mut [f64]),
    /// Any other type is converted.
    Converted(&'a mut [f32]),
}

/// Element type and shape, rows included, of a tensor that was computed.
pub(crate) type Observed = Option<(Element, Vec<i64>)>;

/// What loading a graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To look at its tensors once: not optimised.
    Probe,
    /// To score rows.
    Score,
}

/// A loaded graph. One thread runs it at a time (`&mut`); sessions of the same graph run beside each other.
#[derive(Debug)]
pub(crate) struct Session {
    session: ort::session::Session,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
}

impl Session {
    /// Loads a graph, with one thread to run it; it reads the weights that are given, and has no copy of them.
    ///
    /// # Errors
    /// A planning error if ONNX Runtime refuses it.
    pub(crate) fn load(graph: &[u8], purpose: Purpose, weights: Option<&Weights>) -> Result<Self> {
        let builder = SessionBuilder::new(&loaded()?.environment).map_err(external)?;
        let mut builder = configure(builder, purpose)?;
        if let Some(weights) = weights {
            builder = weights.share(builder)?;
        }
        let canceler = builder.canceler();
        let session = with_deadline(move || canceler.cancel().is_ok(), || builder.commit_from_memory(graph))
            .map_err(|e| external(e).context("ONNX Runtime cannot load the graph"))?;
        let names = |outlets: &[ort::value::Outlet]| -> Result<Vec<CString>> {
            let name = |outlet: &ort::value::Outlet| CString::new(outlet.name());
            outlets
                .iter()
                .map(name)
                .collect::<std::result::Result<_, _>>()
                .map_err(|e| DataFusionError::External(e.into()))
        };
        Ok(Self { inputs: names(session.inputs())?, outputs: names(session.outputs())?, session })
    }

    /// Runs `rows` rows and writes every output where it is wanted.
    ///
    /// # Shapes
    /// - `inputs`: data and shape (rows first) of every input of the graph, in its order
    /// - `outputs`: the same for every output
    ///
    /// # Errors
    /// An execution error if ONNX Runtime fails or a shape is not what it was at registration.
    pub(crate) fn run(&mut self, inputs: &[(Input<'_>, &[i64])], outputs: &mut [(Output<'_>, &[i64])]) -> Result<()> {
        let values = inputs.iter().map(|(input, shape)| value(input, shape)).collect::<Result<Vec<_>>>()?;
        let mut in_place =
            outputs.iter_mut().map(|(output, shape)| prepared(output, shape)).collect::<Result<Vec<_>>>()?;
        let mut pointers: Vec<_> =
            in_place.iter_mut().map(|value| value.as_mut().map_or(ptr::null_mut(), Prepared::ptr)).collect();
        self.run_pointers(&values, &mut pointers, None)?;
        drop(in_place);
        for ((output, shape), pointer) in outputs.iter_mut().zip(pointers) {
            if let Output::Converted(into) = output {
                let value = self.owned(pointer)?;
                if value.dtype().tensor_shape().map(|found| found.as_ref()) != Some(*shape) {
                    return exec_err!("ONNX Runtime gave a tensor of another shape than {shape:?}: {}", value.dtype());
                }
                convert(&value, into)?;
            }
        }
        Ok(())
    }

    /// Runs once and tells types and shapes of the outputs; none for what is not a tensor of a known type.
    pub(crate) fn observe(&mut self, inputs: &[(Input<'_>, &[i64])]) -> Result<Vec<Observed>> {
        let values = inputs.iter().map(|(input, shape)| value(input, shape)).collect::<Result<Vec<_>>>()?;
        let mut pointers = vec![ptr::null_mut(); self.outputs.len()];
        let options = Arc::new(RunOptions::new().map_err(external)?);
        let stop = Arc::clone(&options);
        with_deadline(move || stop.terminate().is_ok(), || self.run_pointers(&values, &mut pointers, Some(&options)))?;
        let observed = |pointer: *mut ort::sys::OrtValue| {
            let value = self.owned(pointer)?;
            let dtype = value.dtype();
            let element = dtype.tensor_type().and_then(Element::from_ort);
            Ok(element.zip(dtype.tensor_shape().map(|shape| shape.to_vec())))
        };
        // every pointer is taken over, so that none leaks, before the first error is returned
        let observed: Vec<Result<Observed>> = pointers.into_iter().map(observed).collect();
        observed.into_iter().collect()
    }

    /// Takes over a value that ONNX Runtime allocated.
    fn owned(&self, pointer: *mut ort::sys::OrtValue) -> Result<DynValue> {
        let Some(pointer) = ptr::NonNull::new(pointer) else {
            return exec_err!("ONNX Runtime left an output empty");
        };
        // SAFETY: a run of this session allocated the value for us, with the session's allocator, and nothing else owns it.
        Ok(unsafe { DynValue::from_ptr(pointer, Some(self.session.allocator())) })
    }

    fn run_pointers(
        &self,
        inputs: &[DynInput<'_>],
        outputs: &mut [*mut ort::sys::OrtValue],
        options: Option<&RunOptions>,
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
        // SAFETY: names and values live until the call returns and their counts are those of the graph (checked above);
        // every output is null (ONNX Runtime allocates it) or a tensor over a slice that is borrowed mutably meanwhile.
        // Each session is run by one thread at a time: all callers hold `&mut self`.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options.map_or(ptr::null(), AsPointer::ptr),
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

/// The large weights of a graph, held once for all of its sessions: as the file has them, and as the kernels pack them.
#[derive(Debug)]
pub(crate) struct Weights {
    tensors: Vec<(String, Arc<DynValue>)>,
    packed: PrepackedWeights,
}

impl Weights {
    /// Smaller ones are copied into each session: they also hold shapes and axes, which ONNX Runtime wants to see.
    const SHARED_BYTES: usize = 4096;

    /// # Errors
    /// An error if ONNX Runtime is not there.
    pub(crate) fn of(graph: &ModelProto) -> Result<Self> {
        loaded()?;
        let initializers = graph.graph.iter().flat_map(|graph| &graph.initializer);
        let tensors = initializers.filter_map(|tensor| Some((tensor.name().to_owned(), floats(tensor)?)));
        let tensors = tensors.map(|(name, (shape, values))| {
            Ok((name, Arc::new(Tensor::from_array((shape, values)).map_err(external)?.into_dyn())))
        });
        Ok(Self { tensors: tensors.collect::<Result<_>>()?, packed: PrepackedWeights::new() })
    }

    fn share(&self, builder: SessionBuilder) -> Result<SessionBuilder> {
        let failed = |e: ort::Error<SessionBuilder>| external(e.into());
        let builder = builder.with_prepacked_weights(&self.packed).map_err(failed)?;
        self.tensors.iter().try_fold(builder, |builder, (name, value)| {
            builder.with_initializer(name, Arc::clone(value)).map_err(failed)
        })
    }
}

/// Shape and values of a large tensor of floats.
fn floats(tensor: &TensorProto) -> Option<(Vec<i64>, Vec<f32>)> {
    if Element::from_onnx(tensor.data_type()) != Some(Element::Float32) {
        return None;
    }
    let values = match &tensor.raw_data {
        Some(raw) => raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        None => tensor.float_data.clone(),
    };
    (size_of_val(values.as_slice()) >= Weights::SHARED_BYTES).then(|| (tensor.dims.clone(), values))
}

fn configure(builder: SessionBuilder, purpose: Purpose) -> Result<SessionBuilder> {
    let level = match purpose {
        Purpose::Probe => GraphOptimizationLevel::Disable,
        Purpose::Score => GraphOptimizationLevel::All,
    };
    // each error holds the builder: it is dropped at once
    let failed = |e: ort::Error<SessionBuilder>| external(e.into());
    let builder = builder.with_optimization_level(level).map_err(failed)?;
    let builder = builder.with_intra_threads(1).map_err(failed)?;
    let builder = builder.with_inter_threads(1).map_err(failed)?;
    let builder = builder.with_intra_op_spinning(false).map_err(failed)?;
    builder.with_inter_op_spinning(false).map_err(failed)
}

/// Runs `work`, and `stop` when it takes longer than the deadline for registration.
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
            "a text holds a zero byte, which ONNX Runtime does not take; take it out: replace(text, chr(0), '')"
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
        other => plan_err!("outputs of type {other:?} are not supported; make the model give float tensors"),
    }
}
