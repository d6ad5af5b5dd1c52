//! Ends runs that take too long. One thread of the process looks after all sessions.

use std::fmt;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use datafusion_common::error::{DataFusionError, Result};
use datafusion_common::exec_err;
use ort::session::RunOptions;
use parking_lot::Mutex;

use super::external;

/// Time between two looks at the runs.
const TICK: Duration = Duration::from_millis(200);

/// The sessions that the thread looks after; none before it starts and after it ends.
static WATCHED: Mutex<Option<Vec<Weak<Watched>>>> = Mutex::new(None);

/// The run of a session.
struct Watched {
    /// The options with which the session runs; they can end a run from another thread.
    options: RunOptions,
    run: Mutex<Run>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("run", &self.run).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Run {
    None,
    Until(Instant),
    Ended,
}

/// Limits the time of the runs of one session.
#[derive(Debug)]
pub(super) struct Watch(Arc<Watched>);

impl Watch {
    /// A watch for a new session.
    pub(super) fn new() -> Result<Self> {
        let watched = Arc::new(Watched { options: RunOptions::new().map_err(external)?, run: Mutex::new(Run::None) });
        let mut all = WATCHED.lock();
        match all.as_mut() {
            Some(all) => all.push(Arc::downgrade(&watched)),
            None => {
                thread::Builder::new()
                    .name("aefusion-watch".to_owned())
                    .spawn(look)
                    .map_err(|e| DataFusionError::IoError(e).context("could not start the thread that limits runs"))?;
                *all = Some(vec![Arc::downgrade(&watched)]);
            }
        }
        drop(all);
        Ok(Self(watched))
    }

    /// Runs `work` with options that end it after `limit`.
    ///
    /// # Errors
    /// The error of `work`; an execution error if it was ended.
    pub(super) fn run<T>(&self, limit: Duration, work: impl FnOnce(&RunOptions) -> Result<T>) -> Result<T> {
        *self.0.run.lock() = Run::Until(Instant::now() + limit);
        let result = work(&self.0.options);
        let was_ended = std::mem::replace(&mut *self.0.run.lock(), Run::None) == Run::Ended;
        if was_ended {
            self.0.options.unterminate().map_err(external)?;
        }
        match result {
            Err(_) if was_ended => exec_err!(
                "a run of the model took longer than {} s and was stopped; if the model is that slow, run fewer rows \
                 at once with SET ae.batch_rows = 16",
                limit.as_secs_f64()
            ),
            result => result,
        }
    }
}

/// Ends runs after their limits, until no session is left.
fn look() {
    loop {
        thread::sleep(TICK);
        let mut all = WATCHED.lock();
        let Some(sessions) = all.as_mut() else { return };
        sessions.retain(|watched| watched.strong_count() > 0);
        if sessions.is_empty() {
            *all = None;
            return;
        }
        let now = Instant::now();
        for watched in sessions.iter().filter_map(Weak::upgrade) {
            let mut run = watched.run.lock();
            if matches!(*run, Run::Until(end) if end <= now) && watched.options.terminate().is_ok() {
                *run = Run::Ended;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Input, Purpose, Session};
    use crate::onnx::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
        attribute_proto,
    };
    use crate::onnx::{declare, encode, undeclared};

    const BOOL: i32 = 9;
    const INT64: i32 = 7;

    fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        NodeProto {
            op_type: Some(operator.to_owned()),
            input: own(inputs),
            output: own(outputs),
            ..NodeProto::default()
        }
    }

    fn one(name: &str, element: i32) -> ValueInfoProto {
        let mut value = declare(name, element, &[]);
        if let Some(crate::onnx::proto::type_proto::Value::TensorType(tensor)) =
            value.r#type.as_mut().and_then(|found| found.value.as_mut())
        {
            tensor.shape = Some(crate::onnx::proto::TensorShapeProto::default());
        }
        value
    }

    /// Counts to its input.
    fn counter() -> Session {
        let body = GraphProto {
            name: Some("body".to_owned()),
            input: vec![one("i", INT64), one("before", BOOL), one("sum", INT64)],
            node: vec![node("Identity", &["before"], &["go"]), node("Add", &["sum", "one"], &["next"])],
            output: vec![one("go", BOOL), one("next", INT64)],
            ..GraphProto::default()
        };
        let body = AttributeProto {
            name: Some("body".to_owned()),
            r#type: Some(attribute_proto::AttributeType::Graph.into()),
            g: Some(body),
            ..AttributeProto::default()
        };
        let number = |name: &str, value: i64| TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(INT64),
            int64_data: vec![value],
            ..TensorProto::default()
        };
        let graph = GraphProto {
            name: Some("counter".to_owned()),
            input: vec![one("n", INT64)],
            initializer: vec![number("one", 1), number("zero", 0)],
            node: vec![NodeProto { attribute: vec![body], ..node("Loop", &["n", "", "zero"], &["count"]) }],
            output: vec![undeclared("count")],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: Some(9),
            opset_import: vec![OperatorSetIdProto { version: Some(18), ..OperatorSetIdProto::default() }],
            graph: Some(graph),
            ..ModelProto::default()
        };
        Session::load(&encode(&model), Purpose::Score).unwrap()
    }

    #[test]
    fn an_endless_run_is_stopped_and_the_next_one_runs() {
        let mut session = counter();
        for _ in 0..2 {
            let endless = [(Input::Int64(&[1_000_000_000_000]), [].as_slice())];
            let error = session.run_once(&endless, Duration::from_millis(300), Ok).unwrap_err();
            assert!(error.to_string().contains("took longer than 0.3 s and was stopped"), "{error}");
            assert_eq!(session.numbers(&[(Input::Int64(&[5]), &[])]).unwrap(), [[5.0]]);
        }
    }
}
