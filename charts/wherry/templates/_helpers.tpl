{{/* Labels of an object. Takes a dict: root, component. */}}
{{- define "wherry.labels" -}}
{{ include "wherry.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: wherry
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels by which Pods are found; they can't change. */}}
{{- define "wherry.selector" -}}
app.kubernetes.io/name: wherry
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of a Pod: without versions, so that a new chart alone restarts no runner, and ends no guest. */}}
{{- define "wherry.podLabels" -}}
{{ include "wherry.selector" . }}
app.kubernetes.io/part-of: wherry
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Objects of a file that tests use, too: ${…} is filled in already, labels are added. Takes a dict: root, component, text,
without (names of objects to leave out), annotations (by kind). */}}
{{- define "wherry.objects" -}}
{{- $labels := include "wherry.labels" . | fromYaml }}
{{- range regexSplit "(?m)^---$" .text -1 }}
{{- $object := fromYaml . }}
{{- $unbound := and (hasSuffix "Binding" $object.kind) (has $object.metadata.name ($.unbound | default list)) }}
{{- if not (or $unbound (has $object.metadata.name ($.without | default list))) }}
{{- $_ := set $object.metadata "labels" (merge (dict) ($object.metadata.labels | default dict) $labels) }}
{{- with get ($.annotations | default dict) $object.kind }}
{{- $_ := set $object.metadata "annotations" (merge (dict) . ($object.metadata.annotations | default dict)) }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end }}

{{/* The operator's right to what a ClusterRole grants. Takes a dict: root, role, name and, where not in all of them, namespace. */}}
{{- define "wherry.bound" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ ternary "RoleBinding" "ClusterRoleBinding" (hasKey . "namespace") }}
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels: {{- include "wherry.labels" (dict "root" .root "component" "operator") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .role }}
subjects:
  - kind: ServiceAccount
    name: wherry-operator
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* An image's reference. Takes a dict: root, image. */}}
{{- define "wherry.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* A quantity in bytes. */}}
{{- define "wherry.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- mul (regexFind "^[0-9]+" . | int64) (get $units (regexReplaceAll "^[0-9]+" . "") | int64) }}
{{- end }}

{{/* The name of a file for a registry's CA: a ConfigMap's keys have no colon. */}}
{{- define "wherry.file" -}}
{{ . | replace ":" "_" }}.pem
{{- end }}

{{- define "wherry.priorityClass" -}}
{{- if .Values.priorityClass.name -}}
{{ .Values.priorityClass.name }}
{{- else if .Values.priorityClass.create -}}
wherry-{{ .Values.nodeName }}
{{- end }}
{{- end }}

{{/* The only nodes that can run a container of ours, whatever else is selected: the virtual one has an os of its own. */}}
{{- define "wherry.nodeSelector" -}}
{{ merge (dict "kubernetes.io/os" "linux") . | toYaml }}
{{- end }}

{{/* Of a Pod and of its containers: what Pod Security `restricted` wants, and a user that the images have. */}}
{{- define "wherry.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "wherry.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
