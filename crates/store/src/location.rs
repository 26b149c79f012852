//! Where a store is, as the command line says it: `dir:PATH`, `kubernetes[:KUBECONFIG]` or `etcd:URL[,URL]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::etcd::{Access, Endpoints};
use crate::{Directory, Error, Etcd, Kubernetes, Store};

/// A store that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of manifests.
    Directory(PathBuf),
    /// The Kubernetes API.
    Kubernetes {
        /// How to reach it and as whom; none leaves that to what a pod is given, else to what `kubectl` would take.
        kubeconfig: Option<PathBuf>,
        /// The namespace of Fairlead's own objects.
        namespace: String,
    },
    /// etcd; the environment says how it is reached and as whom, see [`Access::from_environment`].
    Etcd(Endpoints),
}

impl Location {
    /// The namespace of Fairlead's own objects where nothing else is said.
    pub const NAMESPACE: &'static str = "kube-system";

    /// Whether nodes of flannel are read and told there by annotations of Nodes.
    #[must_use]
    pub fn has_flannels_annotations(&self) -> bool {
        matches!(self, Self::Kubernetes { .. })
    }

    /// Whether it is an etcd, in which flannel has a layout of its own.
    #[must_use]
    pub fn is_etcd(&self) -> bool {
        matches!(self, Self::Etcd(_))
    }

    /// The store there. One that is away for now is opened all the same: a watcher will say when it is there.
    ///
    /// # Errors
    /// [`Error::Access`] when it is not known where the API server is, or with which credentials to ask it;
    /// [`Error::Etcd`] for the same of etcd.
    pub fn open(&self) -> Result<Box<dyn Store>, Error> {
        self.open_beside_flannel(None)
    }

    /// The same where nodes of flannel are to be peers whose keys in etcd begin with this. Another store has none.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_beside_flannel(&self, prefix: Option<&str>) -> Result<Box<dyn Store>, Error> {
        Ok(match self {
            Self::Directory(path) => Box::new(Directory::at(path)),
            Self::Kubernetes { kubeconfig, namespace } => {
                Box::new(Kubernetes::open(kubeconfig.as_deref(), namespace)?)
            }
            Self::Etcd(endpoints) => {
                let access = Access::from_environment(endpoints)?;
                Box::new(Etcd::open(
                    endpoints,
                    Access { flannel_prefix: prefix.map(str::to_owned), ..access },
                )?)
            }
        })
    }

    /// The etcd there, if it is one.
    ///
    /// # Errors
    /// [`Error::Etcd`] when it is not known how to be let in.
    pub fn open_etcd(&self) -> Result<Option<Etcd>, Error> {
        let Self::Etcd(endpoints) = self else { return Ok(None) };
        Etcd::open(endpoints, Access::from_environment(endpoints)?).map(Some)
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("dir", Some(path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            ("dir", _) => Err("the directory's path is missing after `dir:`".to_owned()),
            ("kubernetes", Some("")) => {
                Err("the kubeconfig's path is missing after `kubernetes:`".to_owned())
            }
            ("kubernetes", kubeconfig) => Ok(Self::Kubernetes {
                kubeconfig: kubeconfig.map(PathBuf::from),
                namespace: Self::NAMESPACE.to_owned(),
            }),
            ("etcd", endpoints) => endpoints.unwrap_or_default().parse().map(Self::Etcd),
            _ => Err("a store is dir:PATH, kubernetes[:KUBECONFIG] or etcd:URL[,URL]".to_owned()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(out, "dir:{}", path.display()),
            Self::Kubernetes { kubeconfig: None, .. } => out.write_str("kubernetes"),
            Self::Kubernetes { kubeconfig: Some(path), .. } => write!(out, "kubernetes:{}", path.display()),
            Self::Etcd(endpoints) => write!(out, "etcd:{endpoints}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Location;

    #[test]
    fn a_store_is_named_by_its_kind() {
        assert_eq!("dir:/a:b".parse(), Ok(Location::Directory("/a:b".into())));
        for good in ["dir:/a:b", "kubernetes", "kubernetes:/etc/kubeconfig", "etcd:https://a:1,http://b"] {
            assert_eq!(good.parse::<Location>().map(|location| location.to_string()).as_deref(), Ok(good));
        }
        for bad in [
            "/a",
            "dir:",
            "dir",
            "etcd",
            "etcd:",
            "etcd:a:2379",
            "etcd:https://a,",
            "",
            "kubernetes:",
            "kubernetes-x",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad:?} was taken");
        }
    }
}
