<?php

// What PHP itself has of a request's origin: every header as a variable, and the variables that a server may set.

$about = fn (string $name) => str_starts_with($name, 'HTTP_')
    || in_array($name, ['REMOTE_ADDR', 'HTTPS', 'REQUEST_SCHEME', 'SCRIPT_NAME', 'REQUEST_URI', 'PATH_INFO', 'PHP_SELF']);
$variables = array_filter($_SERVER, $about, ARRAY_FILTER_USE_KEY);
// They are other ones for every request.
unset($variables['HTTP_X_REQUEST_ID'], $variables['HTTP_X_REQUEST_START']);
ksort($variables);

// As a site on its own builds its URLs behind a proxy.
$https = ($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '') === 'https';
$host = $_SERVER['HTTP_X_FORWARDED_HOST'] ?? $_SERVER['HTTP_HOST'];
$port = $_SERVER['HTTP_X_FORWARDED_PORT'] ?? ($https ? '443' : '80');
$port = $port === ($https ? '443' : '80') ? '' : ":$port";
$prefix = $_SERVER['HTTP_X_FORWARDED_PREFIX'] ?? '';

header('Content-Type: application/json');
echo json_encode([
    'address' => $_SERVER['HTTP_X_REAL_IP'] ?? $_SERVER['REMOTE_ADDR'],
    'url' => ($https ? 'https' : 'http') . "://$host$port$prefix/page",
    'variables' => $variables,
], JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE);
