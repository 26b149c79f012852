//! The hardware address that a runtime or a configuration asks for.
//!
//! [`requested`] is all of it: the places it may be asked for in, the later beating the earlier.

use cni::{Error, Request};
use netstate::Mac;

/// The keys of CNI_ARGS that we and the address plugins understand.
const ARGUMENTS: [&str; 3] = ["MAC", "IP", "GATEWAY"];

/// The hardware address asked for: the configuration's own `mac` if `own_key`, CNI_ARGS, `args.cni.mac`, then the
/// capability `mac`; the last that is there counts.
///
/// # Errors
/// Code 4 for CNI_ARGS, 6 for a key of the wrong type, 7 for what is no device's address.
pub(crate) fn requested(request: &Request, own_key: bool) -> Result<Option<Mac>, Error> {
    let fields = request.config.fields();
    let mut asked = match own_key {
        true => (fields.path_of("mac"), fields.string("mac")?),
        false => (String::new(), ""),
    };
    match request.arguments(&ARGUMENTS)?.get("MAC") {
        None | Some("") => {}
        Some(text) => asked = ("CNI_ARGS: MAC".to_owned(), text),
    }
    for fields in [request.config.args()?, request.config.runtime_config()?] {
        match fields.string("mac")? {
            "" => {}
            text => asked = (fields.path_of("mac"), text),
        }
    }
    let (path, text) = asked;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong =
        |reason| Error::invalid_config(format!("{path}: invalid hardware address {text:?}: {reason}"));
    let mac: Mac = text.replace('-', ":").parse().map_err(|_| wrong("expected six pairs of digits"))?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(wrong("a device cannot have a multicast or zero address"));
    }
    Ok(Some(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_beats_the_one_before() {
        let said = |more: &str, args: &str, own: bool| {
            let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", "type": "x", {more}}}"#);
            let mut request = crate::testing::request(&config);
            request.args = args.to_owned();
            requested(&request, own).unwrap().map(|mac| mac.to_string())
        };
        let own = r#""mac": "02:00:00:00:00:01""#;
        let mac = |last: u8| Some(format!("02:00:00:00:00:0{last}"));
        assert_eq!(said(own, "", true), mac(1));
        assert_eq!(said(own, "", false), None);
        assert_eq!(said(own, "MAC=02-00-00-00-00-02", true), mac(2));
        let args = format!(r#"{own}, "args": {{"cni": {{"mac": "02:00:00:00:00:03"}}}}"#);
        assert_eq!(said(&args, "MAC=02:00:00:00:00:02", true), mac(3));
        let runtime = format!(r#"{args}, "runtimeConfig": {{"mac": "02:00:00:00:00:04"}}"#);
        assert_eq!(said(&runtime, "MAC=02:00:00:00:00:02", true), mac(4));
    }
}
