<?php

// What Symfony makes of a request's origin, with the trusted proxies and headers of its documentation.

use Symfony\Component\HttpFoundation\Request;

require 'Symfony/Component/HttpFoundation/autoload.php';

Request::setTrustedProxies(
    ['REMOTE_ADDR'],
    Request::HEADER_X_FORWARDED_FOR
        | Request::HEADER_X_FORWARDED_HOST
        | Request::HEADER_X_FORWARDED_PROTO
        | Request::HEADER_X_FORWARDED_PORT
        | Request::HEADER_X_FORWARDED_PREFIX
);
$request = Request::createFromGlobals();

header('Content-Type: application/json');
echo json_encode([
    'address' => $request->getClientIp(),
    'secure' => $request->isSecure(),
    'host' => $request->getHost(),
    'port' => (int) $request->getPort(),
    'prefix' => $request->getBaseUrl(),
    'path' => $request->getPathInfo(),
    'method' => $request->getMethod(),
    'url' => $request->getUriForPath('/page'),
], JSON_THROW_ON_ERROR);
