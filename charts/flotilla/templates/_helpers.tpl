{{- /* Labels of everything in the chart; takes the root context. */}}
{{- define "flotilla.labels" -}}
app.kubernetes.io/part-of: flotilla
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Labels that select a component's pods; takes a dict of root and name. They never change. */}}
{{- define "flotilla.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- end }}

{{- /* Annotations of a CustomResourceDefinition; empty when there are none. */}}
{{- define "flotilla.crdAnnotations" -}}
{{- $annotations := deepCopy .Values.crds.annotations }}
{{- if .Values.crds.keep }}{{ $_ := set $annotations "helm.sh/resource-policy" "keep" }}{{ end }}
{{- with $annotations }}{{ toYaml . }}{{ end }}
{{- end }}

{{- /* An image's reference; takes a dict of root and image. A digest wins over the tag. */}}
{{- define "flotilla.image" -}}
{{- $registry := .root.Values.global.imageRegistry | default .image.registry }}
{{- $name := ternary .image.repository (printf "%s/%s" $registry .image.repository) (empty $registry) }}
{{- if .image.digest }}{{ $name }}@{{ .image.digest }}{{ else }}{{ $name }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}
