//! A real broker for tests, demos and benchmarks: the one at `KAFKA_BOOTSTRAP_SERVERS`, else one in Docker, else one that
//! Java 17 runs.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{checked, remove, root, terminate};

/// How long a broker may take to accept connections.
const START: Duration = Duration::from_secs(90);
/// How long a broker may take to stop after a signal.
const STOP: Duration = Duration::from_secs(30);
/// A file system in memory, and the bytes that benchmarks may write to it.
const MEMORY: &str = "/dev/shm";
const MEMORY_BYTES: u64 = 4 << 30;
/// Settings of every broker that is started here. It is a single node, keeps records of any age, and deletes at once.
const SETTINGS: [&str; 14] = [
    "offsets.topic.replication.factor=1",
    "offsets.topic.num.partitions=4",
    "transaction.state.log.replication.factor=1",
    "transaction.state.log.min.isr=1",
    "transaction.state.log.num.partitions=4",
    "share.coordinator.state.topic.replication.factor=1",
    "share.coordinator.state.topic.min.isr=1",
    "group.initial.rebalance.delay.ms=0",
    "group.min.session.timeout.ms=500",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000",
    "auto.create.topics.enable=false",
    "log.retention.ms=-1",
    "log.retention.check.interval.ms=2000",
    "log.segment.delete.delay.ms=0",
];
/// User and password of the listener with SASL.
pub const USER: (&str, &str) = ("pump", "correct-horse");

const MISSING: &str = "no Kafka broker can be started: install Java 17 and Maven (on Debian: apt-get install \
                       openjdk-17-jre-headless maven). To use Kafka without them, start Docker, or set \
                       KAFKA_BOOTSTRAP_SERVERS to the address of a broker; tests that stop a broker need Java.";

/// A broker. One that was started here stops when this is dropped.
#[derive(Debug)]
pub struct Broker {
    bootstrap: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Given,
    Docker { container: String },
    Java(Java),
}

impl Broker {
    /// The broker at `KAFKA_BOOTSTRAP_SERVERS`, or a new one in Docker or Java.
    ///
    /// # Errors
    /// If none of these is available, with what to install; if the broker does not start.
    pub fn start() -> Result<Self> {
        Self::first(None)
    }

    /// A broker for a benchmark. Java keeps its data in memory, if enough is free, to leave the disk out of the measurement.
    ///
    /// # Errors
    /// See [`Broker::start`].
    pub fn start_measured() -> Result<Self> {
        // one name for all runs: each removes what an interrupted one left
        let data = Path::new(MEMORY).join("aefusion-bench");
        remove(&data)?;
        let is_enough = free(Path::new(MEMORY)).is_some_and(|free| free >= MEMORY_BYTES);
        if !is_enough {
            writeln!(
                std::io::stderr(),
                "{MEMORY} has less than 4 GiB free: the broker writes to disk, which the measurement includes"
            )?;
        }
        Self::first(is_enough.then_some(data))
    }

    /// `data`: the folder in which Java keeps the broker's data, if not in the broker's folder.
    fn first(data: Option<PathBuf>) -> Result<Self> {
        if let Ok(bootstrap) = std::env::var("KAFKA_BOOTSTRAP_SERVERS") {
            return Ok(Self { bootstrap, kind: Kind::Given });
        }
        match has_docker_engine() {
            true => Self::docker(),
            false => Self::java_at(data),
        }
    }

    /// A new broker without data, which can be paused and has a listener with SASL and TLS.
    ///
    /// # Errors
    /// If Java or Maven is missing, or the broker does not start.
    pub fn java() -> Result<Self> {
        Self::java_at(None)
    }

    fn java_at(data: Option<PathBuf>) -> Result<Self> {
        let java = Java::prepare(data)?;
        let mut broker = Self { bootstrap: java.bootstrap(), kind: Kind::Java(java) };
        broker.resume()?;
        Ok(broker)
    }

    fn docker() -> Result<Self> {
        let [port] = free_ports()?;
        let bootstrap = format!("127.0.0.1:{port}");
        // the image reads settings from variables with the same names
        let variable = |setting: &str| {
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            ["--env".to_owned(), format!("KAFKA_{}={value}", name.replace('.', "_").to_uppercase())]
        };
        let settings = [
            "node.id=1",
            "process.roles=broker,controller",
            "listeners=PLAINTEXT://:9092,CONTROLLER://:9093",
            "controller.listener.names=CONTROLLER",
            "controller.quorum.voters=1@localhost:9093",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        ];
        let mut command = Command::new("docker");
        command.args(["run", "--detach", "--rm", "--publish", &format!("127.0.0.1:{port}:9092")]);
        command.args(settings.into_iter().chain(SETTINGS).flat_map(variable));
        command.args(variable(&format!("advertised.listeners=PLAINTEXT://{bootstrap}")));
        let output = checked(command.arg(image()?))?;
        let container = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let broker = Self { bootstrap, kind: Kind::Docker { container } };
        answers(&broker.bootstrap, || Ok(()))?;
        Ok(broker)
    }

    /// `host:port` of the broker.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The listener with SASL and TLS, and the file of its certificate.
    #[must_use]
    pub fn secured(&self) -> Option<(String, PathBuf)> {
        match &self.kind {
            Kind::Java(java) => Some((format!("127.0.0.1:{}", java.ports[2]), java.folder.join("broker.pem"))),
            _ => None,
        }
    }

    /// Kills the broker, or stops it in order. Its data stay.
    ///
    /// # Errors
    /// If Java did not start it here.
    pub fn pause(&mut self, is_killed: bool) -> Result<()> {
        let Kind::Java(java) = &mut self.kind else { bail!("only a broker that was started here can be stopped") };
        java.stop(is_killed)
    }

    /// Starts a paused broker again, with its data.
    ///
    /// # Errors
    /// If Java did not start it here, or it does not start.
    pub fn resume(&mut self) -> Result<()> {
        let Kind::Java(java) = &mut self.kind else { bail!("only a broker that was started here can be started") };
        java.start()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Given => {}
            Kind::Docker { container } => drop(Command::new("docker").args(["stop", container]).output()),
            Kind::Java(java) => {
                drop(java.stop(true));
                drop(std::fs::remove_dir_all(&java.data));
                drop(std::fs::remove_dir_all(&java.folder));
            }
        }
    }
}

/// The image of `docker-compose.yml`.
fn image() -> Result<String> {
    let compose = std::fs::read_to_string(root().join("docker-compose.yml"))?;
    let image = compose.lines().find_map(|line| line.trim().strip_prefix("image: apache/kafka:"));
    Ok(format!("apache/kafka:{}", image.context("docker-compose.yml names no image apache/kafka")?.trim()))
}

fn has_docker_engine() -> bool {
    // the client knows the version of a server only if one runs
    Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .output()
        .is_ok_and(|o| o.status.success())
}

#[derive(Debug)]
struct Java {
    folder: PathBuf,
    data: PathBuf,
    libraries: PathBuf,
    /// Ports of the broker, its controller, and its listener with SASL and TLS.
    ports: [u16; 3],
    process: Option<Child>,
}

impl Java {
    /// Makes a folder with settings and no data.
    fn prepare(data: Option<PathBuf>) -> Result<Self> {
        let libraries = libraries()?;
        let folder = root().join("target").join("kafka").join(format!("{}-{}", std::process::id(), unique()));
        std::fs::create_dir_all(&folder)?;
        let data = data.unwrap_or_else(|| folder.join("data"));
        let java = Self { folder, data, libraries, ports: free_ports()?, process: None };
        java.certify()?;
        std::fs::write(java.folder.join("server.properties"), java.settings())?;
        let id = ["--cluster-id", "AEfusionAEfusionAEfusg", "--standalone", "--config"];
        let mut format = java.command("kafka.tools.StorageTool");
        checked(format.arg("format").args(id).arg("server.properties"))?;
        Ok(java)
    }

    fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    fn settings(&self) -> String {
        let [port, controller, secured] = self.ports;
        let (user, password) = USER;
        format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{secured}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL\n\
             controller.listener.names=CONTROLLER\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             sasl.enabled.mechanisms=PLAIN\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
             user_{user}=\"{password}\";\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={}\n\
             log.dirs={}\n\
             {}\n",
            self.folder.join("broker.pem").display(),
            self.data.display(),
            SETTINGS.join("\n"),
        )
    }

    /// Makes a certificate that is signed by itself.
    fn certify(&self) -> Result<()> {
        let (key, certificate) = (self.folder.join("key.pem"), self.folder.join("certificate.pem"));
        let subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]).args(subject);
        checked(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
        let both = [std::fs::read_to_string(&key)?, std::fs::read_to_string(&certificate)?].concat();
        Ok(std::fs::write(self.folder.join("broker.pem"), both)?)
    }

    fn command(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        let logging = root().join("xtask").join("kafka").join("log4j2.properties");
        command.arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command.args(["-Xms1g", "-Xmx1g", "-XX:+ExitOnOutOfMemoryError"]);
        // as Kafka's own scripts start it
        command.args(["-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"]);
        command.args(["-XX:+ExplicitGCInvokesConcurrent", "-cp"]);
        command.arg(self.libraries.join("*")).arg(class).current_dir(&self.folder);
        command
    }

    fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.join("broker.log"))?;
        let mut command = self.command("kafka.Kafka");
        command.arg("server.properties").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut process = command.spawn().context("could not start java")?;
        let log = self.folder.join("broker.log");
        let started = answers(&self.bootstrap(), || match process.try_wait()? {
            Some(status) => {
                bail!("the broker ended with {status}: {}", std::fs::read_to_string(&log).unwrap_or_default())
            }
            None => Ok(()),
        });
        self.process = Some(process);
        started
    }

    fn stop(&mut self, is_killed: bool) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if !is_killed {
            terminate(&process)?;
            let start = Instant::now();
            while process.try_wait()?.is_none() && start.elapsed() < STOP {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        process.kill()?;
        process.wait()?;
        Ok(())
    }
}

/// Fetches Kafka's libraries, if they are not there. Brokers in Java need them.
///
/// # Errors
/// If Java or Maven is missing, or Maven cannot fetch the libraries.
pub fn fetch() -> Result<()> {
    libraries().map(drop)
}

/// The folder of Kafka's libraries, fetched once by Maven.
fn libraries() -> Result<PathBuf> {
    let project = root().join("xtask").join("kafka").join("pom.xml");
    let wanted = std::fs::read_to_string(&project)?;
    let folder = root().join("target").join("kafka").join("libraries");
    let stamp = folder.join("pom.xml");
    if std::fs::read_to_string(&stamp).is_ok_and(|fetched| fetched == wanted) {
        return Ok(folder);
    }
    if !["java", "mvn"].into_iter().all(|program| Command::new(program).arg("-version").output().is_ok()) {
        bail!(MISSING);
    }
    writeln!(std::io::stderr(), "fetching Kafka's libraries")?;
    remove(&folder)?;
    let mut maven = Command::new("mvn");
    maven.args(["--quiet", "--batch-mode", "dependency:copy-dependencies", "-DincludeScope=runtime", "--file"]);
    checked(maven.arg(&project).arg(format!("-DoutputDirectory={}", folder.display())))?;
    std::fs::write(stamp, wanted)?;
    Ok(folder)
}

/// Bytes that are free in the file system of a folder, if `df` reports them.
fn free(folder: &Path) -> Option<u64> {
    let output = checked(Command::new("df").args(["--output=avail", "--block-size=1"]).arg(folder)).ok()?;
    String::from_utf8(output.stdout).ok()?.lines().nth(1)?.trim().parse().ok()
}

/// Ports on which nobody listens.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn unique() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Waits until a broker accepts connections. `check` fails if the broker has ended.
fn answers(bootstrap: &str, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let address = bootstrap.to_socket_addrs()?.next().context("the broker has no address")?;
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        check()?;
        if start.elapsed() > START {
            bail!("no broker answered at {bootstrap} within {} s", START.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
