//! The Helm chart's templates, made from the manifests: the same text, with the places that values fill exchanged.
//!
//! Read [`template`]. A block of the DaemonSet that has a value of its own ([`BLOCKS`]) is exchanged whole, and has to be the
//! default in values.yaml; single lines are exchanged by [`LINES`]. Each must be there exactly once, so a manifest cannot
//! change and leave the chart behind. The templates use what Go's templates have, and `toYaml`, `nindent`, `quote` and
//! `default`, and nothing else.

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{SOURCE, parse, yaml};

/// Where the chart is.
const CHART: &str = "deploy/helm/fairlead";

/// What the namespace is where there is no release: as a namespace, and within the name of the account.
const NAMESPACES: [(&str, &str); 2] = [
    ("namespace: kube-system", "namespace: {{ .Release.Namespace }}"),
    (":serviceaccount:kube-system:", ":serviceaccount:{{ .Release.Namespace }}:"),
];

/// Keys of the DaemonSet that values.yaml has too, by the same name, and where they stand.
const BLOCKS: [(&str, &str); 5] = [
    ("updateStrategy", "/spec/updateStrategy"),
    ("priorityClassName", "/spec/template/spec/priorityClassName"),
    ("nodeSelector", "/spec/template/spec/nodeSelector"),
    ("tolerations", "/spec/template/spec/tolerations"),
    ("resources", "/spec/template/spec/containers/0/resources"),
];

/// Lines of manifests, and what templates have in their place: which manifest, how the line begins (behind its indentation,
/// or with it), and the lines, to which its indentation is added.
const LINES: [(&str, &str, &[&str]); 5] = [
    (
        "config.yaml",
        "# apiServerHost: ",
        &["{{- with .Values.apiServer.host }}", "apiServerHost: {{ . | quote }}", "{{- end }}"],
    ),
    (
        "config.yaml",
        "# apiServerPort: ",
        &["{{- with .Values.apiServer.port }}", "apiServerPort: {{ . | quote }}", "{{- end }}"],
    ),
    (
        "daemonset.yaml",
        "image: ",
        &[
            "image: \"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}\"",
            "{{- with .Values.image.pullPolicy }}",
            "imagePullPolicy: {{ . }}",
            "{{- end }}",
        ],
    ),
    (
        "daemonset.yaml",
        "- --health=",
        &["- --health=127.0.0.1:7670", "{{- range .Values.extraArgs }}", "- {{ . | quote }}", "{{- end }}"],
    ),
    (
        "daemonset.yaml",
        "      labels:",
        &[
            "labels: {app.kubernetes.io/name: fairlead}",
            "{{- with .Values.podAnnotations }}",
            "annotations:",
            "  {{- toYaml . | nindent 8 }}",
            "{{- end }}",
        ],
    ),
];

/// A template for each manifest, with its text.
pub(super) fn templates(manifests: &[(String, String)]) -> anyhow::Result<Vec<(String, String)>> {
    let made =
        manifests.iter().map(|(name, text)| Ok((format!("{CHART}/templates/{name}"), template(name, text)?)));
    made.collect()
}

/// The manifest as a template.
fn template(manifest: &str, text: &str) -> anyhow::Result<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (_, start, instead) in LINES.iter().filter(|(of, ..)| *of == manifest) {
        let place = the_only(&lines, start).with_context(|| format!("{manifest}: {start:?}"))?;
        let indent = indentation(&lines[place]);
        lines.splice(place..=place, instead.iter().map(|line| format!("{:indent$}{line}", "")));
    }
    match manifest {
        // Always there, for the agent reads it; an empty one is a good one.
        "config.yaml" => exchange(&mut lines, "config.yaml: |", |indent| {
            vec![
                "config.yaml: |".to_owned(),
                format!("  {{{{- toYaml .Values.config | nindent {} }}}}", indent + 2),
            ]
        })?,
        "daemonset.yaml" => {
            for (key, _) in BLOCKS {
                exchange(&mut lines, &format!("{key}:"), |indent| optional(key, indent))?;
            }
        }
        _ => {}
    }
    let mut text = format!("{}\n", lines.join("\n"));
    if manifest == "admission.yaml" {
        text = format!("{{{{- if .Values.admissionPolicy.enabled }}}}\n{text}{{{{- end }}}}\n");
    }
    Ok(NAMESPACES.iter().fold(text, |text, (said, says)| text.replace(said, says)))
}

/// Puts lines in the place of a block: of its first line, and all that is indented deeper.
fn exchange(
    lines: &mut Vec<String>,
    start: &str,
    instead: impl Fn(usize) -> Vec<String>,
) -> anyhow::Result<()> {
    let first = the_only(lines, start).with_context(|| format!("{start:?}"))?;
    let indent = indentation(&lines[first]);
    let deeper = lines[first + 1..].iter().take_while(|line| indentation(line) > indent).count();
    let instead = instead(indent);
    lines.splice(first..=first + deeper, instead.iter().map(|line| format!("{:indent$}{line}", "")));
    Ok(())
}

/// A key that is there if its value is not empty.
fn optional(key: &str, indent: usize) -> Vec<String> {
    vec![
        format!("{{{{- with .Values.{key} }}}}"),
        format!("{key}:"),
        format!("  {{{{- toYaml . | nindent {} }}}}", indent + 2),
        "{{- end }}".to_owned(),
    ]
}

/// Where the only line is that begins so.
fn the_only(lines: &[String], start: &str) -> anyhow::Result<usize> {
    let found: Vec<usize> = (0..lines.len())
        .filter(|&line| lines[line].starts_with(start) || lines[line].trim_start().starts_with(start))
        .collect();
    match found[..] {
        [one] => Ok(one),
        _ => bail!("there are {} lines that begin so, not one", found.len()),
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// What of the chart's versions and default values does not agree with the manifests.
pub(super) fn faults(version: &str) -> anyhow::Result<Vec<String>> {
    let chart = yaml(&format!("{CHART}/Chart.yaml"))?;
    let values = yaml(&format!("{CHART}/values.yaml"))?;
    let daemon_set = yaml(&format!("{SOURCE}/daemonset.yaml"))?;
    let config_map = yaml(&format!("{SOURCE}/config.yaml"))?;
    let mut pairs = vec![
        ("Chart.yaml: version".to_owned(), chart["version"].clone(), json!(version)),
        ("Chart.yaml: appVersion".to_owned(), chart["appVersion"].clone(), json!(version)),
    ];
    for (key, pointer) in BLOCKS {
        let said = daemon_set.pointer(pointer).with_context(|| format!("the DaemonSet has no {pointer}"))?;
        pairs.push((format!("values.yaml: {key}"), values[key].clone(), said.clone()));
    }
    let config = config_map["data"]["config.yaml"].as_str().context("the ConfigMap has no config.yaml")?;
    pairs.push(("values.yaml: config".to_owned(), values["config"].clone(), parse(config)?));
    let image = daemon_set.pointer("/spec/template/spec/containers/0/image").unwrap_or(&Value::Null);
    let ours = format!("{}:{version}", values["image"]["repository"].as_str().unwrap_or_default());
    pairs.push(("values.yaml: image.repository".to_owned(), json!(ours), image.clone()));
    let differ = pairs.into_iter().filter(|(_, is, said)| is != said);
    Ok(differ.map(|(what, is, said)| format!("{CHART}/{what} is {is}, not {said}")).collect())
}

#[cfg(test)]
mod tests {
    use super::template;

    #[test]
    fn a_block_gives_way_to_its_value_with_all_that_is_in_it() {
        let text = "data:\n  # apiServerHost: a\n  # apiServerPort: b\n  config.yaml: |\n    a: 1\n    b:\n      c: 2\n  more: 3\n";
        let template = template("config.yaml", text).unwrap();
        let block = "  config.yaml: |\n    {{- toYaml .Values.config | nindent 4 }}\n  more: 3\n";
        assert!(template.ends_with(block), "{template}");
    }

    #[test]
    fn a_place_that_a_manifest_lost_or_has_twice_is_told() {
        for text in ["data: {}\n", "# apiServerHost: a\n# apiServerHost: a\n"] {
            let error = format!("{:#}", template("config.yaml", text).unwrap_err());
            assert!(error.contains("apiServerHost") && error.contains("not one"), "{error}");
        }
    }
}
