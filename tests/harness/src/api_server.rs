//! A real kube-apiserver on a real etcd, for one test binary.
//!
//! Read [`ApiServer::start`]. The binaries are found as envtest finds them: in `$KUBEBUILDER_ASSETS`, else in
//! `/usr/local/kubebuilder/bin`; etcd also on `PATH`. Certificates, keys and data are in a directory of its own, the ports
//! are its own too, and everything ends with the value, or with the test's process if that is killed. There are no
//! controllers and no kubelets: what those would write, a test writes with [`ApiServer::request`] as administrator.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::{Namespace, Service, eventually, not_run, run_ok};

/// The administrator's token until [`ApiServer::replace_admin_token`].
const TOKEN: &str = "admin-token";

/// An API server and its etcd.
#[derive(Debug)]
pub struct ApiServer {
    directory: Directory,
    programs: Programs,
    place: Place,
    etcd: Option<Service>,
    server: Option<Service>,
    token: String,
}

#[derive(Debug, Clone)]
struct Programs {
    etcd: PathBuf,
    server: PathBuf,
}

/// Where they listen.
#[derive(Debug, Clone)]
struct Place {
    /// The path of the network namespace; none for the test's own.
    namespace: Option<PathBuf>,
    address: IpAddr,
    port: u16,
    etcd_port: u16,
    peer_port: u16,
}

/// As whom somebody asks.
#[derive(Debug, Clone, Copy)]
pub enum Credential<'c> {
    /// A token, in the kubeconfig itself.
    Token(&'c str),
    /// A file with a token.
    TokenFile(&'c Path),
    /// A client certificate of the administrator.
    Certificate,
}

impl ApiServer {
    /// Starts them on the loopback of the test's own namespace. None, once it was said why, where there are no binaries.
    pub fn start() -> Option<Self> {
        Self::start_at(None, IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Starts them in another namespace, to be reached at `address`, which that namespace must have.
    pub fn start_in(namespace: &Namespace, address: IpAddr) -> Option<Self> {
        Self::start_at(Some(namespace), address)
    }

    fn start_at(namespace: Option<&Namespace>, address: IpAddr) -> Option<Self> {
        let programs = Programs::find()?;
        let free = || {
            let sockets = [address, Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]
                .map(|address| TcpListener::bind((address, 0)).expect("a free port"));
            sockets.map(|socket| socket.local_addr().expect("its address").port())
        };
        let [port, etcd_port, peer_port] = namespace.map_or_else(free, |namespace| namespace.inside(free));
        let place = Place { namespace: namespace.map(Namespace::path), address, port, etcd_port, peer_port };
        let directory = Directory::new();
        let token = TOKEN.to_owned();
        let mut started = Self { directory, programs, place, etcd: None, server: None, token };
        started.make_keys();
        started.write_tokens();
        started.start_etcd();
        started.resume();
        Some(started)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path.join(name)
    }

    /// Certificates and keys: an authority, a server of its own, an administrator; and the service accounts' key.
    fn make_keys(&self) {
        let address = self.place.address;
        let script = format!(
            "openssl ecparam -name prime256v1 -genkey -noout -out sa.key &&
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca \\
               -keyout ca.key -out ca.crt &&
             printf 'subjectAltName=IP:{address},IP:127.0.0.1,DNS:localhost\\n' > san &&
             for of in server:/CN=server admin:/O=system:masters/CN=admin; do
               name=${{of%%:*}} &&
               openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj \"${{of#*:}}\" \\
                 -keyout $name.key -out $name.csr &&
               openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san \\
                 -out $name.crt || exit 1
             done"
        );
        run_ok(Command::new("sh").args(["-c", &script]).current_dir(&self.directory.path));
        let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";
        std::fs::write(self.path("audit.yaml"), policy).expect("the audit policy");
    }

    fn write_tokens(&self) {
        let tokens = format!("{},admin,admin,\"system:masters\"\n", self.token);
        std::fs::write(self.path("tokens.csv"), tokens).expect("the tokens");
    }

    fn start_etcd(&mut self) {
        let Place { etcd_port, peer_port, .. } = self.place;
        let url = format!("http://127.0.0.1:{etcd_port}");
        let mut command = self.command(&self.programs.etcd);
        command.arg("--data-dir").arg(self.path("etcd")).args(["--listen-client-urls", &url]);
        command.args(["--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer_port}")]);
        self.etcd = Some(kept(command, self.path("etcd.log")));
    }

    /// Kills the API server as by `kill -9`; etcd keeps what it has.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts an API server that was killed, and waits until it is ready.
    pub fn resume(&mut self) {
        let Place { address, port, etcd_port, .. } = self.place;
        let mut command = self.command(&self.programs.server);
        let file = |name: &str| self.path(name).display().to_string();
        let options = [
            ("etcd-servers", format!("http://127.0.0.1:{etcd_port}")),
            ("bind-address", address.to_string()),
            ("advertise-address", address.to_string()),
            ("secure-port", port.to_string()),
            ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("cert-dir", file("certs")),
            ("client-ca-file", file("ca.crt")),
            ("tls-cert-file", file("server.crt")),
            ("tls-private-key-file", file("server.key")),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", file("sa.key")),
            ("service-account-signing-key-file", file("sa.key")),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "RBAC".to_owned()),
            // It would wait for a controller to make each namespace's account.
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("audit-policy-file", file("audit.yaml")),
            ("audit-log-path", file("audit.log")),
            ("audit-log-mode", "blocking".to_owned()),
        ];
        command.args(options.map(|(name, value)| format!("--{name}={value}")));
        self.server = Some(kept(command, self.path("kube-apiserver.log")));
        eventually("the API server is ready", || {
            let (code, _) = self.ask(&self.token, "GET", "/readyz", None)?;
            (code == 200).then_some(())
        });
    }

    /// Whether it was started and not killed since.
    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// Runs another API server on the same etcd while `work` is done, at a port where nobody but the test looks.
    pub fn resume_apart(&mut self, work: impl FnOnce(&Self)) {
        self.kill();
        let socket = TcpListener::bind((self.place.address, 0)).expect("a free port");
        let port = socket.local_addr().expect("its address").port();
        drop(socket);
        let known = std::mem::replace(&mut self.place.port, port);
        self.resume();
        work(self);
        self.kill();
        self.place.port = known;
    }

    /// Takes away all that etcd has, as if its disk had been replaced by an empty one.
    pub fn wipe(&mut self) {
        self.kill();
        if let Some(etcd) = self.etcd.take() {
            etcd.kill();
        }
        std::fs::remove_dir_all(self.path("etcd")).expect("etcd's data goes");
        self.start_etcd();
        self.resume();
    }

    /// Lets etcd forget every version but the newest, so that no watch can go on from an older one.
    pub fn compact(&self) {
        let ask = |path: &str, body: Value| {
            let url = format!("http://127.0.0.1:{}{path}", self.place.etcd_port);
            let mut command = self.command(Path::new("curl"));
            command.args(["-s", "-f", "-m", "10", "--data-binary", &body.to_string(), &url]);
            serde_json::from_str::<Value>(&run_ok(&mut command)).expect("etcd answers in JSON")
        };
        let head = ask("/v3/kv/range", json!({"key": "AA==", "limit": 1}));
        ask("/v3/kv/compaction", json!({"revision": head["header"]["revision"], "physical": true}));
    }

    /// Gives the administrator another token; the old one is good for nothing once the server has been restarted.
    pub fn replace_admin_token(&mut self, token: &str) {
        token.clone_into(&mut self.token);
        self.write_tokens();
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.place.address, self.place.port))
    }

    /// The administrator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_for("admin", Credential::Token(&self.token))
    }

    /// A kubeconfig for `name`, in a file of that name.
    pub fn kubeconfig_for(&self, name: &str, credential: Credential<'_>) -> PathBuf {
        let user = match credential {
            Credential::Token(token) => json!({"token": token}),
            Credential::TokenFile(path) => json!({"tokenFile": path}),
            // Relative to the kubeconfig.
            Credential::Certificate => json!({"client-certificate": "admin.crt", "client-key": "admin.key"}),
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url(), "certificate-authority": "ca.crt"}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let path = self.path(&format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string()).expect("the kubeconfig");
        path
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// A token of a service account, good for an hour.
    pub fn token_of(&self, namespace: &str, account: &str) -> String {
        self.token_bound(namespace, account, &json!({}))
    }

    /// The same, bound to a node as is the token of a pod that runs there.
    pub fn token_on(&self, namespace: &str, account: &str, node: &str) -> String {
        let uid = &self.get(&format!("/api/v1/nodes/{node}"))["metadata"]["uid"];
        let object = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid});
        self.token_bound(namespace, account, &json!({"boundObjectRef": object}))
    }

    fn token_bound(&self, namespace: &str, account: &str, spec: &Value) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        self.create(&path, &request)["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// One request of the administrator: the status code and the body.
    ///
    /// # Panics
    /// When nobody answers.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.request_as(&self.token, method, path, body)
    }

    /// The same of whoever has this token.
    ///
    /// # Panics
    /// When nobody answers.
    pub fn request_as(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let answer = self.ask(token, method, path, body);
        answer.unwrap_or_else(|| panic!("{method} {path}: no answer\n{}", self.log()))
    }

    /// The same for what must be there; gives the body.
    ///
    /// # Panics
    /// When it is not.
    pub fn get(&self, path: &str) -> Value {
        self.good("GET", path, None)
    }

    /// Creates an object below the path of its list.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create(&self, path: &str, object: &Value) -> Value {
        self.good("POST", path, Some(object))
    }

    /// Creates the objects of a manifest in YAML, instead of those of the same names, as `kubectl replace --force` does.
    ///
    /// # Panics
    /// When one is refused.
    pub fn apply(&self, manifest: &str) {
        let objects: Vec<Value> = serde_saphyr::from_multiple(manifest).expect("a manifest");
        for object in objects {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let version = text(&object["apiVersion"]).expect("a version");
            let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
            let namespace = text(&object["metadata"]["namespace"]);
            let namespace =
                namespace.map_or_else(String::new, |namespace| format!("/namespaces/{namespace}"));
            let kind = text(&object["kind"]).expect("a kind").to_lowercase();
            let plural = match kind.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None => format!("{kind}s"),
            };
            let list = format!("{root}{namespace}/{plural}");
            self.delete(&format!("{list}/{}", text(&object["metadata"]["name"]).expect("a name")));
            self.create(&list, &object);
        }
    }

    /// Changes an object by a merge patch.
    ///
    /// # Panics
    /// When it is refused.
    pub fn patch(&self, path: &str, patch: &Value) -> Value {
        self.good("PATCH", path, Some(patch))
    }

    /// Removes an object, at once; true if it was there.
    ///
    /// # Panics
    /// When it is refused.
    pub fn delete(&self, path: &str) -> bool {
        let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        let (code, answer) = self.request("DELETE", path, Some(&now));
        assert!((200..300).contains(&code) || code == 404, "DELETE {path}: {code} {answer}");
        code != 404
    }

    /// Many requests of the administrator, several at a time over one connection: each a method, a path and a body. For
    /// clusters of a size, where a process for each would take minutes. Patches are strategic ones, as kubelets send them.
    ///
    /// # Panics
    /// When one is refused.
    pub fn batch(&self, requests: &[(&str, String, Value)]) {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut config = String::new();
        for (method, path, body) in requests {
            let kind = if *method == "PATCH" { "strategic-merge-patch+json" } else { "json" };
            config.push_str(&format!(
                "next\nurl = \"{}{path}\"\nrequest = {method}\ncacert = \"{}\"\nmax-time = 60\n\
                 header = \"Authorization: Bearer {}\"\nheader = \"Content-Type: application/{kind}\"\n\
                 data-binary = \"{}\"\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\n",
                self.url(),
                self.authority().display(),
                self.token,
                quoted(&body.to_string())
            ));
        }
        let file = self.path("batch.curl");
        std::fs::write(&file, config).expect("the requests");
        let mut command = self.command(Path::new("curl"));
        command.args(["-s", "--parallel", "--parallel-max", "8", "--config"]).arg(file);
        let codes = run_ok(&mut command);
        let good = codes.lines().filter(|code| code.starts_with('2')).count();
        assert_eq!(good, requests.len(), "these are not all good: {codes}\n{}", self.log());
    }

    fn good(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (code, answer) = self.request(method, path, body);
        assert!((200..300).contains(&code), "{method} {path}: {code} {answer}");
        answer
    }

    fn ask(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let mut command = self.command(Path::new("curl"));
        command.args(["-s", "-m", "20", "-X", method, "--cacert"]).arg(self.authority());
        command.args(["-H", &format!("Authorization: Bearer {token}")]);
        command.args(["-H", &format!("Content-Type: {kind}"), "--data-binary", "@-", "-w", "\n%{http_code}"]);
        command.arg(format!("{}{path}", self.url()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("curl starts");
        let body = body.map(Value::to_string).unwrap_or_default();
        // One that cannot connect does not read it.
        let _ = child.stdin.take().expect("a pipe").write_all(body.as_bytes());
        let output = child.wait_with_output().expect("curl ends");
        let text = String::from_utf8_lossy(&output.stdout);
        let (answer, code) = text.rsplit_once('\n')?;
        let code = code.trim().parse().ok().filter(|code| *code != 0)?;
        Some((code, serde_json::from_str(answer).unwrap_or_else(|_| Value::from(answer))))
    }

    /// What `kubectl`, as the administrator, says; none where there is no kubectl beside the API server.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Option<String> {
        let kubectl = self.programs.server.with_file_name("kubectl");
        if !kubectl.exists() {
            return None;
        }
        let mut command = self.command(&kubectl);
        // What it has learnt of the API it would keep in the home directory.
        command.arg("--cache-dir").arg(self.path("kubectl")).arg("--kubeconfig").arg(self.kubeconfig());
        Some(run_ok(command.args(arguments)))
    }

    /// What has been asked so far, one audit event a request.
    pub fn audit(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.path("audit.log")).unwrap_or_default();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What the API server has said.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Service::log).unwrap_or_default()
    }

    fn command(&self, program: &Path) -> Command {
        match &self.place.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
                command
            }
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // The server first: one that loses its etcd would complain for a while.
        self.kill();
        self.etcd = None;
    }
}

/// A temporary directory that goes with the test's process, also when nothing is dropped: what tests share lives in a
/// static.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    janitor: Child,
}

impl Directory {
    fn new() -> Self {
        let path = tempfile::tempdir().expect("a temporary directory").keep();
        // It reads until the other end is closed; by then the kernel has killed who writes here.
        let script = "trap '' INT TERM; cat; for i in 1 2 3 4 5; do rm -rf -- \"$1\" 2> /dev/null && exit; sleep 0.2; done";
        let mut command = Command::new("sh");
        command.args(["-c", script, "janitor"]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
        Self { path, janitor: command.spawn().expect("sh starts") }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

impl Programs {
    fn find() -> Option<Self> {
        let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let directory = named.unwrap_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let anywhere = |name: &str| {
            std::env::split_paths(&path).map(|entry| entry.join(name)).find(|path| path.exists())
        };
        let beside = |name: &str| Some(directory.join(name)).filter(|path| path.exists());
        let server = beside("kube-apiserver");
        let etcd = beside("etcd").or_else(|| anywhere("etcd"));
        for (found, what) in [
            (
                server.is_some(),
                "there is no kube-apiserver in $KUBEBUILDER_ASSETS or /usr/local/kubebuilder/bin",
            ),
            (etcd.is_some(), "there is no etcd beside kube-apiserver or on PATH (Debian: etcd-server)"),
            (anywhere("openssl").is_some(), "there is no openssl"),
            (anywhere("curl").is_some(), "there is no curl"),
        ] {
            if !found {
                not_run(what);
                return None;
            }
        }
        Some(Self { etcd: etcd?, server: server? })
    }
}

/// Starts a program from a thread that lasts: the kernel ends it with the thread that started it, and a test's ends
/// before those of the tests that share the server.
fn kept(mut command: Command, log: PathBuf) -> Service {
    let (sender, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(Service::start(&mut command, log));
        loop {
            std::thread::park();
        }
    });
    started.recv().expect("it is started")
}
