//! Where etcd is, and how one is let in.
//!
//! Read [`Endpoints`], which `--store etcd:URL[,URL]` names, and [`Access`], which the environment tells: a password on the
//! command line would be seen by everybody who may list processes. Files are read each time that connections are made
//! or a token is asked for, so a certificate or password that was replaced is taken up without a restart.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

use crate::Error;

/// The URLs of etcd's members, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    first: String,
    others: Vec<String>,
}

impl Endpoints {
    /// The first one and the others, as they were given.
    pub(crate) fn parts(&self) -> (&str, &[String]) {
        (&self.first, &self.others)
    }

    fn urls(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl FromStr for Endpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Before it is taken apart, and not repeated, whatever else is wrong: a password may hold a comma.
        if text.contains('@') {
            let reason = "user and password of etcd stand in FAIRLEAD_ETCD_USERNAME and \
                          FAIRLEAD_ETCD_PASSWORD_FILE, not in a URL that everybody sees";
            return Err(reason.to_owned());
        }
        let mut urls = text.split(',').map(|url| check(url.trim_end_matches('/')));
        let first = urls.next().unwrap_or_else(|| check(""))?;
        Ok(Self { first, others: urls.collect::<Result<_, _>>()? })
    }
}

/// The URL with its scheme in small letters, as everybody goes on to compare it.
fn check(url: &str) -> Result<String, String> {
    const FORM: &str = "etcd's members are named as etcd:https://HOST:2379[,https://HOST:2379]";
    let parsed: Uri = url.parse().map_err(|error| format!("{FORM}, not {url:?} ({error})"))?;
    let scheme = parsed.scheme_str().map(str::to_ascii_lowercase).unwrap_or_default();
    let authority = parsed.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    if !matches!(&*scheme, "http" | "https") || authority.is_empty() {
        return Err(format!("{FORM}, not {url:?}"));
    }
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
        return Err(format!("{FORM}: {url:?} has a path"));
    }
    Ok(format!("{scheme}://{authority}"))
}

impl fmt::Display for Endpoints {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.first)?;
        self.others.iter().try_for_each(|url| write!(out, ",{url}"))
    }
}

/// How one is let in, and under which prefix Fairlead's keys are. Shows no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The certificates of the authority that signed etcd's own; none stands for those of the system.
    pub authority: Option<PathBuf>,
    /// The certificate and the key to show to etcd.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// As whom to ask; nobody if etcd asks for no password.
    pub user: Option<User>,
    /// What all keys begin with, without a slash at the end.
    pub prefix: String,
    /// What flannel's keys begin with, without a slash at the end, where its nodes are to be peers; none leaves them alone.
    pub flannel_prefix: Option<String>,
}

/// A user of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Password,
}

/// A password, or where it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password.
    Text(String),
    /// The file that holds it, but for a line break at its end.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => out.write_str("Text(..)"),
            Self::File(path) => out.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Password {
    /// What it is now.
    pub(crate) fn read(&self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned()),
                Err(error) => Err(format!("the password's file {}: {error}", path.display())),
            },
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self {
            authority: None,
            identity: None,
            user: None,
            prefix: Self::PREFIX.to_owned(),
            flannel_prefix: None,
        }
    }
}

impl Access {
    /// What all keys begin with, if nothing else is said.
    pub const PREFIX: &'static str = "/fairlead";

    /// What the environment tells: `FAIRLEAD_ETCD_CA`, `_CERT` and `_KEY` (files), `_USERNAME`, `_PASSWORD` or
    /// `_PASSWORD_FILE`, and `_PREFIX`. One that is empty is not there.
    ///
    /// # Errors
    /// [`Error::Etcd`] if half of a pair is missing, or a password is given twice.
    pub fn from_environment(endpoints: &Endpoints) -> Result<Self, Error> {
        Self::of(endpoints, |name| std::env::var_os(format!("FAIRLEAD_ETCD_{name}")))
    }

    fn of(endpoints: &Endpoints, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let wrong = |reason: &str, hint| Error::Etcd {
            endpoints: endpoints.to_string(),
            reason: reason.to_owned(),
            hint,
        };
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &str| match path(name).map(|path| path.into_os_string().into_string()) {
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(wrong(&format!("FAIRLEAD_ETCD_{name} is not UTF-8 text"), "correct it")),
            None => Ok(None),
        };
        let identity = match (path("CERT"), path("KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let hint = "a client's certificate and its key are two files, and both are needed; set the other as well";
                return Err(wrong("only one of FAIRLEAD_ETCD_CERT and FAIRLEAD_ETCD_KEY is set", hint));
            }
        };
        let password = match (text("PASSWORD")?, path("PASSWORD_FILE")) {
            (Some(_), Some(_)) => {
                let reason = "FAIRLEAD_ETCD_PASSWORD and FAIRLEAD_ETCD_PASSWORD_FILE are both set";
                return Err(wrong(reason, "unset one of them"));
            }
            (text, file) => text.map(Password::Text).or(file.map(Password::File)),
        };
        let user = match (text("USERNAME")?, password) {
            (Some(name), Some(password)) => Some(User { name, password }),
            (None, None) => None,
            (Some(_), None) => {
                let hint = "set FAIRLEAD_ETCD_PASSWORD_FILE, or FAIRLEAD_ETCD_PASSWORD";
                return Err(wrong("FAIRLEAD_ETCD_USERNAME is set, but no password", hint));
            }
            (None, Some(_)) => {
                return Err(wrong("a password is set, but no user", "set FAIRLEAD_ETCD_USERNAME"));
            }
        };
        let prefix = text("PREFIX")?.unwrap_or_else(|| Self::PREFIX.to_owned());
        let access = Self { authority: path("CA"), identity, user, prefix, flannel_prefix: None };
        access.checked(endpoints)
    }

    /// Itself, if it fits these endpoints.
    ///
    /// # Errors
    /// [`Error::Etcd`] where TLS is wanted and would not be used, also for a password that some members are sent with it;
    /// or the prefix is none.
    pub(crate) fn checked(mut self, endpoints: &Endpoints) -> Result<Self, Error> {
        let wrong = |reason: String, hint| Error::Etcd { endpoints: endpoints.to_string(), reason, hint };
        let plain = endpoints.urls().find(|url| url.starts_with("http://"));
        if let Some(url) = plain.filter(|_| self.authority.is_some() || self.identity.is_some()) {
            let reason = format!("{url} is asked without TLS, though certificates are given");
            return Err(wrong(reason, "write https://, or unset FAIRLEAD_ETCD_CA, _CERT and _KEY"));
        }
        let encrypted = endpoints.urls().find(|url| url.starts_with("https://"));
        if let (Some(_), Some(url), Some(_)) = (&self.user, plain, encrypted) {
            let reason = format!("{url} would be sent the password without TLS, and other members with it");
            return Err(wrong(reason, "write https:// for all members"));
        }
        self.prefix.truncate(self.prefix.trim_end_matches('/').len());
        if self.prefix.is_empty() || self.prefix.contains(|character: char| character.is_control()) {
            let hint = "leave it away for /fairlead, or name a part of etcd's keys such as /clusters/a";
            return Err(wrong("FAIRLEAD_ETCD_PREFIX is no prefix of keys".to_owned(), hint));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Access, Endpoints, Password, User};

    fn endpoints(text: &str) -> Endpoints {
        text.parse().unwrap()
    }

    fn told(url: &str, variables: &[(&str, &str)]) -> Result<Access, String> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let access = Access::of(&endpoints(url), |name| variables.get(name).map(Into::into));
        access.map_err(|error| error.to_string())
    }

    #[test]
    fn members_are_urls_without_path_or_password() {
        let text = "https://a:2379,http://[fd00::1]:2379";
        assert_eq!(endpoints(text).to_string(), text);
        assert_eq!(endpoints("http://a:2379/").to_string(), "http://a:2379");
        assert_eq!(endpoints("HTTPS://a:2379,Http://b/").to_string(), "https://a:2379,http://b");
        for bad in
            ["", "a:2379", "ftp://a", "https://", "https://a/v3", "https://a,", "https://a?x=y", "https:///x"]
        {
            assert!(bad.parse::<Endpoints>().is_err(), "{bad:?} was taken");
        }
        // Also where it is no good URL beside that.
        for secret in [
            "https://root:hunter2@a:2379",
            "HTTPS://root:hunter2@a",
            "ftp://root:hunter2@a",
            "root:hunter2@a:2379",
            "https://root:hunter2 @a",
            "https://root:hunter2@a:port",
            "https://root:hunter2@a/v3?x=y",
            "https://root:hunter2@",
            "https://root:hunter2,b@a",
            "https://b,https://root:hun/hunter2@a",
        ] {
            let told = secret.parse::<Endpoints>().unwrap_err();
            assert!(told.contains("FAIRLEAD_ETCD_PASSWORD_FILE") && !told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn the_environment_tells_how_one_is_let_in() {
        assert_eq!(told("http://a", &[]), Ok(Access::default()));
        assert_eq!(told("http://a", &[("CA", ""), ("USERNAME", ""), ("PREFIX", "")]), Ok(Access::default()));
        let all = [
            ("CA", "/ca"),
            ("CERT", "/cert"),
            ("KEY", "/key"),
            ("USERNAME", "agent"),
            ("PASSWORD_FILE", "/password"),
            ("PREFIX", "/a/b/"),
        ];
        let want = Access {
            authority: Some("/ca".into()),
            identity: Some(("/cert".into(), "/key".into())),
            user: Some(User { name: "agent".to_owned(), password: Password::File("/password".into()) }),
            prefix: "/a/b".to_owned(),
            flannel_prefix: None,
        };
        assert_eq!(told("https://a", &all), Ok(want));
        let told = told("https://a", &[("USERNAME", "agent"), ("PASSWORD", "hunter2")]).unwrap();
        assert!(!format!("{told:?}").contains("hunter2"), "{told:?}");
    }

    #[test]
    fn a_half_of_what_is_needed_is_refused_and_told() {
        for (variables, want) in [
            (&[("CERT", "/c")][..], "only one of FAIRLEAD_ETCD_CERT and FAIRLEAD_ETCD_KEY is set"),
            (&[("USERNAME", "a")], "set FAIRLEAD_ETCD_PASSWORD_FILE"),
            (&[("PASSWORD", "a")], "set FAIRLEAD_ETCD_USERNAME"),
            (&[("USERNAME", "a"), ("PASSWORD", "b"), ("PASSWORD_FILE", "/c")], "unset one of them"),
            (&[("PREFIX", "//")], "FAIRLEAD_ETCD_PREFIX"),
        ] {
            let error = told("https://a", variables).unwrap_err();
            assert!(error.starts_with("open the store etcd:https://a: ") && error.contains(want), "{error}");
        }
        let user = [("USERNAME", "agent"), ("PASSWORD", "hunter2")];
        for plain in ["http://b", "HTTP://b", "Http://b/"] {
            let urls = format!("https://a,{plain}");
            let certified = told(&urls, &[("CA", "/ca")]).unwrap_err();
            assert!(certified.contains("http://b is asked without TLS"), "{certified}");
            let mixed = told(&urls, &user).unwrap_err();
            assert!(mixed.contains("http://b would be sent the password without TLS"), "{mixed}");
            assert!(told(plain, &user).is_ok() && told("https://a,HTTPS://b", &user).is_ok());
        }
    }
}
