//! A real etcd of one test's own, of one member or of several.
//!
//! Read [`Etcd::start`]. The program is found beside kube-apiserver's (`$KUBEBUILDER_ASSETS`) or on `PATH`. Each listens at
//! an address of its own within 127.0.0.0/8, so tests run side by side and one that is started again has its port
//! back. Data, certificates and keys are in a directory that goes with the value; the programs end with it, or with the
//! thread that started them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};

use crate::{Namespace, Service, eventually, not_run, run_ok};

/// An etcd.
#[derive(Debug)]
pub struct Etcd {
    directory: tempfile::TempDir,
    program: PathBuf,
    options: Options,
    members: Vec<Member>,
    /// The path of the network namespace; none for the test's own.
    namespace: Option<PathBuf>,
    token: Option<String>,
}

/// What is special to one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How many members it has besides the first.
    pub more_members: u8,
    /// Whether it speaks TLS, and lets in only who has a certificate of its authority.
    pub tls: bool,
}

#[derive(Debug)]
struct Member {
    address: Ipv4Addr,
    service: Option<Service>,
}

impl Etcd {
    /// Starts one of a single member without TLS. None, once it was said why, where there is no program.
    pub fn start() -> Option<Self> {
        Self::start_with(Options::default())
    }

    /// Starts one.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(options: Options) -> Option<Self> {
        let addresses = (0..=options.more_members).map(|_| own_address()).collect();
        Self::start_at(options, None, addresses)
    }

    /// Starts one in another namespace, to be reached at `address`, which that namespace must have.
    pub fn start_in(namespace: &Namespace, address: Ipv4Addr) -> Option<Self> {
        Self::start_at(Options::default(), Some(namespace.path()), vec![address])
    }

    fn start_at(options: Options, namespace: Option<PathBuf>, addresses: Vec<Ipv4Addr>) -> Option<Self> {
        let program = find()?;
        let members = addresses.into_iter().map(|address| Member { address, service: None }).collect();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut started = Self { directory, program, options, members, namespace, token: None };
        if options.tls {
            started.make_keys();
        }
        started.resume();
        Some(started)
    }

    /// A file in the directory that goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The URLs of its members.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| self.url_of(member)).collect()
    }

    /// The URL of its first member.
    pub fn url(&self) -> String {
        self.url_of(&self.members[0])
    }

    fn url_of(&self, member: &Member) -> String {
        format!("{}://{}:2379", if self.options.tls { "https" } else { "http" }, member.address)
    }

    /// The authority's certificate, for those that speak TLS.
    pub fn authority(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// The certificate of that name and its key: `server` or `client`, or `stranger`, whom nobody knows.
    pub fn identity(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")))
    }

    fn make_keys(&self) {
        let addresses: Vec<String> =
            self.members.iter().map(|member| format!("IP:{}", member.address)).collect();
        let script = format!(
            "for of in ca stranger; do
               openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$of \\
                 -keyout $of.key -out $of.crt || exit 1
             done
             printf 'subjectAltName={}\\n' > san &&
             for of in server client; do
               openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$of \\
                 -keyout $of.key -out $of.csr &&
               openssl x509 -req -in $of.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san \\
                 -out $of.crt || exit 1
             done",
            addresses.join(",")
        );
        run_ok(Command::new("sh").args(["-c", &script]).current_dir(self.directory.path()));
    }

    /// Kills it as by `kill -9`; what it has written stays.
    pub fn kill(&mut self) {
        (0..self.members.len()).for_each(|number| self.kill_member(number));
    }

    /// Kills one of its members.
    pub fn kill_member(&mut self, number: usize) {
        if let Some(service) = self.members[number].service.take() {
            service.kill();
        }
    }

    /// Starts what was killed, and waits until it serves.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn resume(&mut self) {
        let away: Vec<usize> =
            (0..self.members.len()).filter(|number| self.members[*number].service.is_none()).collect();
        for number in &away {
            let service = Service::start(&mut self.command(*number), self.path(&format!("{number}.log")));
            self.members[*number].service = Some(service);
        }
        for number in away {
            if let Some(service) = &mut self.members[number].service {
                service.await_said("ready to serve client requests", 1);
            }
        }
    }

    fn command(&self, number: usize) -> Command {
        let peer = |member: &Member| format!("http://{}:2380", member.address);
        let cluster =
            self.members.iter().enumerate().map(|(number, member)| format!("m{number}={}", peer(member)));
        let (member, mut command) = (&self.members[number], self.within(&self.program));
        command
            .args(["--name", &format!("m{number}"), "--unsafe-no-fsync"])
            .arg("--data-dir")
            .arg(self.path(&format!("data{number}")))
            .args([
                "--listen-client-urls",
                &self.url_of(member),
                "--advertise-client-urls",
                &self.url_of(member),
            ])
            .args(["--listen-peer-urls", &peer(member), "--initial-advertise-peer-urls", &peer(member)])
            .args(["--initial-cluster", &cluster.collect::<Vec<_>>().join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        if self.options.tls {
            command
                .arg("--cert-file")
                .arg(self.path("server.crt"))
                .arg("--key-file")
                .arg(self.path("server.key"));
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.authority());
        }
        command
    }

    fn within(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
        command
    }

    /// Stops some of its members for a while as by `kill -STOP`, and lets them go on.
    pub fn set_stopped(&self, members: std::ops::Range<usize>, stopped: bool) {
        let signal = if stopped { "-STOP" } else { "-CONT" };
        let members = &self.members[members];
        let ids = members.iter().filter_map(|member| Some(member.service.as_ref()?.id().to_string()));
        run_ok(Command::new("kill").arg(signal).args(ids));
    }

    /// Takes away all that it has, as if its disk had been replaced by an empty one.
    ///
    /// # Panics
    /// When the data cannot be removed.
    pub fn wipe(&mut self) {
        self.kill();
        for number in 0..self.members.len() {
            std::fs::remove_dir_all(self.path(&format!("data{number}"))).expect("etcd's data goes");
        }
        self.token = None;
        self.resume();
    }

    /// Asks the gateway of the first member; the code of HTTP and the answer.
    ///
    /// # Panics
    /// When there is no answer in JSON.
    pub fn request(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut command = self.within(Path::new("curl"));
        // By a file: a body may be longer than an argument.
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), body.to_string()).expect("the body");
        command.args(["-s", "-m", "20", "-w", "\n%{http_code}", "--data-binary"]);
        command.arg(format!("@{}", file.path().display()));
        if self.options.tls {
            let (certificate, key) = self.identity("client");
            command
                .arg("--cacert")
                .arg(self.authority())
                .arg("--cert")
                .arg(certificate)
                .arg("--key")
                .arg(key);
        }
        if let Some(token) = &self.token {
            command.args(["-H", &format!("Authorization: {token}")]);
        }
        command.arg(format!("{}{path}", self.url()));
        let said = run_ok(&mut command);
        let (answer, code) = said.rsplit_once('\n').expect("a code");
        (code.parse().expect("a code"), serde_json::from_str(answer).unwrap_or(Value::Null))
    }

    /// The same, for what must go well.
    ///
    /// # Panics
    /// When it does not.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let (code, answer) = self.request(path, body);
        assert_eq!(code, 200, "{path} {body}: {answer}");
        answer
    }

    /// What `etcdctl put` does.
    pub fn put(&self, key: &str, value: &str) {
        self.ask("/v3/kv/put", &json!({"key": base64(key), "value": base64(value)}));
    }

    /// The raw record of one key, if it is there.
    pub fn get(&self, key: &str) -> Option<Value> {
        let answer = self.ask("/v3/kv/range", &json!({"key": base64(key)}));
        answer["kvs"].get(0).cloned()
    }

    /// What `etcdctl del --prefix` does.
    pub fn delete(&self, prefix: &str) {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let end = String::from_utf8(end).expect("text");
        self.ask("/v3/kv/deleterange", &json!({"key": base64(prefix), "range_end": base64(&end)}));
    }

    /// Lets it forget every version but the newest.
    pub fn compact(&self) {
        let head = self.ask("/v3/kv/range", &json!({"key": base64("/"), "limit": 1}));
        self.ask("/v3/kv/compaction", &json!({"revision": head["header"]["revision"], "physical": true}));
    }

    /// Makes it ask everybody for a password: `root` may do all, and `user` what is below `prefix`.
    pub fn ask_for_passwords(&mut self, user: &str, password: &str, prefix: &str) {
        let mut end = format!("{prefix}/").into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let end = String::from_utf8(end).expect("text");
        for (name, word) in [("root", "root-password"), (user, password)] {
            self.ask("/v3/auth/user/add", &json!({"name": name, "password": word}));
            self.ask("/v3/auth/role/add", &json!({"name": name}));
            self.ask("/v3/auth/user/grant", &json!({"user": name, "role": name}));
        }
        let all =
            json!({"permType": "READWRITE", "key": base64(&format!("{prefix}/")), "range_end": base64(&end)});
        self.ask("/v3/auth/role/grant", &json!({"name": user, "perm": all}));
        self.ask("/v3/auth/enable", &json!({}));
        self.authenticate();
    }

    /// Asks for a token of root's, for what the test itself does.
    pub fn authenticate(&mut self) {
        self.token = None;
        let token = eventually("root gets a token", || {
            let (code, answer) =
                self.request("/v3/auth/authenticate", &json!({"name": "root", "password": "root-password"}));
            (code == 200).then(|| answer["token"].as_str().map(str::to_owned)).flatten()
        });
        self.token = Some(token);
    }
}

/// Text as the gateway wants it.
pub fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| -> String {
        let bits = (0..3).fold(0u32, |bits, index| bits << 8 | u32::from(*chunk.get(index).unwrap_or(&0)));
        let letter = |index: usize| match index <= chunk.len() {
            true => char::from(LETTERS[(bits >> (18 - 6 * index) & 63) as usize]),
            false => '=',
        };
        (0..4).map(letter).collect()
    };
    text.as_bytes().chunks(3).map(group).collect()
}

/// An address of this test's process that no other test has.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    // Not the first nor the last of 127.0.0.0/8.
    Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed).clamp(1, 254), high, low)
}

fn find() -> Option<PathBuf> {
    let beside = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside
        .into_iter()
        .chain([PathBuf::from("/usr/local/kubebuilder/bin")])
        .chain(std::env::split_paths(&path));
    let places: Vec<PathBuf> = places.collect();
    let anywhere =
        |name: &str| places.iter().map(|place| place.join(name)).find(|path: &PathBuf| Path::exists(path));
    let program = anywhere("etcd");
    for (found, what) in [
        (program.is_some(), "there is no etcd beside kube-apiserver or on PATH (Debian: etcd-server)"),
        (anywhere("openssl").is_some(), "there is no openssl"),
        (anywhere("curl").is_some(), "there is no curl"),
    ] {
        if !found {
            not_run(what);
            return None;
        }
    }
    program
}
